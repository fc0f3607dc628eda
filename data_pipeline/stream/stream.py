"""The deterministic order of a corpus: a pure mapping from sequence number to sequence.

An epoch is a shuffled order of blocks, cut into windows of `window_blocks` blocks; the documents of a window
are shuffled and packed together. What the sequence with number n holds depends on the shards, the packing and
the seed alone. The state is small and plain: epoch, window, next sequence in it, and the running number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.common.errors import InputError
from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.stream.packing import Packing, PackingPlan


class Reader(Protocol):
    """What the stream needs of a corpus's shards (see shards.text.TextReader and shards.images.ImageReader)."""

    @property
    def blocks_per_shard(self) -> list[int]: ...

    def document_lengths(self, shard: int, block: int) -> np.ndarray:
        """int32 [documents of the block], in tokens; ones for images."""
        ...

    def read_document(self, shard: int, block: int, document: int) -> Any:
        """Raises InputError where the shard's bytes are not those of the manifest."""
        ...


@dataclass(frozen=True)
class Position:
    """Where a job stands in a Stream: `number` sequences were handed out since its start, in all epochs."""

    epoch: int = 0
    window: int = 0
    sequence: int = 0
    number: int = 0


class Window(NamedTuple):
    blocks: list[tuple[int, int]]  # (shard, block)
    documents: np.ndarray  # int64 [documents, 2]: (index into blocks, document in it), in shuffled order
    plan: PackingPlan


class Stream:
    """The order over one split of a corpus: a SequenceSource whose state is a Position.

    window_blocks x block size is what is shuffled together: 64 blocks of 64K tokens are 4M tokens.
    """

    def __init__(
        self, reader: Reader, packing: Packing, seed: int, *, window_blocks: int = 64, window_shards: int = 16
    ) -> None:
        self.reader, self.packing, self.seed = reader, packing, seed
        self.window_blocks, self.window_shards = window_blocks, window_shards
        self.windows_per_epoch = -(-sum(reader.blocks_per_shard) // window_blocks)
        if not self.windows_per_epoch:
            raise InputError("the split has no blocks: the corpus is too small, or valid_fraction too large")
        self._block_order = lru_cache(maxsize=1)(self._order_of_blocks)
        self.window = lru_cache(maxsize=2)(self._make_window)

    def start(self) -> Position:
        return Position()

    def to_json(self, state: Position) -> dict[str, int]:
        return asdict(state)

    def from_json(self, values: dict[str, Any]) -> Position:
        keys = ("epoch", "window", "sequence", "number")
        if sorted(values) != sorted(keys) or not all(isinstance(values[key], int) for key in keys):
            raise InputError(
                f"{values} is not a position in one corpus: whole numbers for {', '.join(keys)} are needed"
            )
        return Position(**values)

    def number(self, state: Position) -> int:
        return state.number

    def passes(self, state: Position) -> int:
        return self.advance(state, 0).epoch

    def advance(self, state: Position, count: int) -> Position:
        epoch, window, sequence = state.epoch, state.window, state.sequence + count
        # A plan needs the lengths in the index, no documents. But how many sequences a window has is known only from
        # its plan: skipping many windows plans each of them.
        while sequence >= (available := self.window(epoch, window).plan.num_sequences):
            sequence -= available
            window += 1
            if window == self.windows_per_epoch:
                epoch, window = epoch + 1, 0
        return Position(epoch, window, sequence, state.number + count)

    def sequence(self, state: Position) -> list[Any]:
        """The segments that the packing put into the sequence at `state`, as it cuts them."""
        state = self.advance(state, 0)  # a state may point past the last sequence of its window
        window = self.window(state.epoch, state.window)
        return [
            self.packing.cut(self._document(window, segment.document), segment)
            for segment in window.plan.segments(state.sequence)
        ]

    def sequences(self, state: Position) -> Iterator[tuple[list[Any], Position]]:
        """(sequence, the position after it), without end."""
        while True:
            sequence = self.sequence(state)
            state = self.advance(state, 1)
            yield sequence, state

    def _document(self, window: Window, document: int) -> Any:
        block, index = (int(x) for x in window.documents[document])
        return self.reader.read_document(*window.blocks[block], index)

    def _make_window(self, epoch: int, window: int) -> Window:
        blocks = self._block_order(epoch)[window * self.window_blocks : (window + 1) * self.window_blocks]
        lengths = [self.reader.document_lengths(*b) for b in blocks]
        documents = np.array([(i, d) for i, of_block in enumerate(lengths) for d in range(len(of_block))])
        # Key 0 is the order of the epoch's blocks.
        order = generator(self.seed, Purpose.ORDER, epoch, window + 1).permutation(len(documents))
        plan = self.packing.plan(np.concatenate(lengths)[order])
        if not plan.num_sequences:
            raise InputError(f"blocks {blocks[0]} to {blocks[-1]} contain too little text for one sequence")
        return Window(blocks, documents[order], plan)

    def _order_of_blocks(self, epoch: int) -> list[tuple[int, int]]:
        """Blocks shuffled among `window_shards` shards at a time: a window opens a bounded number of shards."""
        shards = np.arange(len(self.reader.blocks_per_shard))
        rng = generator(self.seed, Purpose.ORDER, epoch, 0)
        rng.shuffle(shards)
        order: list[tuple[int, int]] = []
        for first in range(0, len(shards), self.window_shards):
            group = [
                (int(s), b)
                for s in shards[first : first + self.window_shards]
                for b in range(self.reader.blocks_per_shard[s])
            ]
            order += [group[i] for i in rng.permutation(len(group))]
        return order

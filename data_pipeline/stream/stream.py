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
    """What the stream needs of a corpus (see shards.ShardReader)."""

    @property
    def blocks_per_shard(self) -> list[int]: ...

    def document_lengths(self, shard: int, block: int) -> np.ndarray: ...

    def read_document(self, shard: int, block: int, document: int) -> Any: ...


@dataclass(frozen=True)
class Position:
    """Where a job stands: `number` sequences were handed out since its start, in all epochs."""

    epoch: int = 0
    window: int = 0
    sequence: int = 0
    number: int = 0

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Position:
        return cls(**{key: int(values[key]) for key in ("epoch", "window", "sequence", "number")})


class Window(NamedTuple):
    blocks: list[tuple[int, int]]  # (shard, block)
    documents: np.ndarray  # int64 [documents, 2]: (index into blocks, document in it), in shuffled order
    plan: PackingPlan


class Stream:
    """The order over one split of a corpus.

    window_blocks x block size is what is shuffled together: 64 blocks of 64K tokens are 4M tokens.
    """

    def __init__(
        self, reader: Reader, packing: Packing, seed: int, *, window_blocks: int = 64, window_shards: int = 16
    ) -> None:
        self.reader, self.packing, self.seed = reader, packing, seed
        self.window_blocks, self.window_shards = window_blocks, window_shards
        self.windows_per_epoch = -(-sum(reader.blocks_per_shard) // window_blocks)
        if not self.windows_per_epoch:
            raise InputError("the split holds no blocks: the corpus is too small, or valid_fraction too large")
        self._block_order = lru_cache(maxsize=1)(self._order_of_blocks)
        self.window = lru_cache(maxsize=2)(self._make_window)

    def start(self) -> Position:
        return Position()

    def to_json(self, position: Position) -> dict[str, Any]:
        return position.as_json()

    def from_json(self, values: dict[str, Any]) -> Position:
        try:
            return Position.from_json(values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a position in the data: {values}") from error

    def number(self, position: Position) -> int:
        return position.number

    def advance(self, position: Position, count: int) -> Position:
        """The position `count` sequences later."""
        epoch, window, sequence = position.epoch, position.window, position.sequence + count
        while sequence >= (available := self.window(epoch, window).plan.num_sequences):
            sequence -= available
            window += 1
            if window == self.windows_per_epoch:
                epoch, window = epoch + 1, 0
        return Position(epoch, window, sequence, position.number + count)

    def sequence(self, position: Position) -> list[Any]:
        """The sequence at `position`: the pieces of documents that the packing put there, as it cuts them."""
        position = self.advance(position, 0)
        window = self.window(position.epoch, position.window)
        return [
            self.packing.cut(self._document(window, piece.document), piece)
            for piece in window.plan.pieces(position.sequence)
        ]

    def sequences(self, position: Position) -> Iterator[tuple[list[Any], Position]]:
        """(sequence, the position after it), without end."""
        while True:
            sequence = self.sequence(position)
            position = self.advance(position, 1)
            yield sequence, position

    def _document(self, window: Window, document: int) -> Any:
        block, index = (int(x) for x in window.documents[document])
        return self.reader.read_document(*window.blocks[block], index)

    def _make_window(self, epoch: int, window: int) -> Window:
        blocks = self._block_order(epoch)[window * self.window_blocks : (window + 1) * self.window_blocks]
        lengths = [self.reader.document_lengths(*b) for b in blocks]
        documents = np.array([(i, d) for i, of_block in enumerate(lengths) for d in range(len(of_block))])
        order = generator(self.seed, Purpose.ORDER, epoch, window + 1).permutation(len(documents))
        plan = self.packing.plan(np.concatenate(lengths)[order])
        if not plan.num_sequences:
            raise InputError(f"blocks {blocks[0]} to {blocks[-1]} hold too little text for one sequence")
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

"""The deterministic order of a corpus: a pure mapping from sequence number to sequence.

An epoch is a shuffled order of blocks, cut into windows of at least `window_blocks` blocks; the documents of a window
are shuffled and packed together, and its sequences are handed out in a random order: neighbors in a packing are often
cuts of one document, those in a batch are not. What the sequence with number n holds depends on the shards, the packing
and the seed alone. The state is small and plain: epoch, window, next sequence in it, and the running number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.common.errors import InputError
from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.stream.packing import Packing, PackingPlan
from data_pipeline.stream.sequence_source import Origin, Part

# Of what a position means. 1 had no such entry: a window's sequences came in the order of their packing.
FORMAT = 2


Block = tuple[int, int]  # (shard, block in it)


class Reader(Protocol):
    """What the stream needs of a corpus's shards (see shards.text.TextReader and shards.images.ImageReader)."""

    @property
    def name(self) -> str:
        """Which split of which data, for messages."""
        ...

    @property
    def shard_names(self) -> list[str]: ...

    @property
    def blocks_per_shard(self) -> list[int]: ...

    def document_lengths(self, shard: int, block: int) -> np.ndarray:
        """int32 [documents of the block], in tokens; ones for images."""
        ...

    def sentence_starts(self, shard: int, block: int) -> np.ndarray:
        """int64 [sentences of the block], in tokens from the block's start; of images each is one. Read from the shard:
        raises InputError as `read_document`."""
        ...

    def read_document(self, shard: int, block: int, document: int) -> Any:
        """Raises InputError where the shard's bytes are not those of the manifest."""
        ...

    def keep_blocks(self, count: int) -> None:
        """This many blocks are read in turn; what was read of them is worth keeping in memory."""
        ...


@dataclass(frozen=True)
class Position:
    """Where a job stands in a Stream: `number` sequences were handed out since its start, in all epochs.

    sequence: a place in the order in which the window's sequences are handed out, not in its packing.
    """

    epoch: int = 0
    window: int = 0
    sequence: int = 0
    number: int = 0


class Window(NamedTuple):
    blocks: list[Block]
    documents: np.ndarray  # int64 [documents, 2]: (index into blocks, document in it), in shuffled order
    plan: PackingPlan
    order: np.ndarray  # int64 [sequences]: the number in the plan of the sequence that is handed out n-th


class Stream:
    """The order over one split of a corpus: a SequenceSource whose state is a Position.

    window_blocks x block size is what is shuffled together: 64 blocks of 64K tokens are 4M tokens.
    least_sequences: windows are made wider than window_blocks where it takes more blocks to have so many sequences in
    one, by the number of sequences in the first blocks of the first epoch.
    An epoch's blocks are dealt to its windows evenly, so that none is left with a few: a window has less than twice
    the blocks that were asked for. An epoch that has no more than these is one window.
    """

    def __init__(
        self,
        reader: Reader,
        packing: Packing,
        seed: int,
        *,
        window_blocks: int = 64,
        window_shards: int = 16,
        least_sequences: int = 0,
    ) -> None:
        """Raises InputError where the split has no blocks."""
        self.reader, self.packing, self.seed = reader, packing, seed
        self.window_blocks, self.window_shards, self.least_sequences = window_blocks, window_shards, least_sequences
        self.parts: Mapping[str, Part] = {}
        self.blocks = sum(reader.blocks_per_shard)
        if not self.blocks:
            raise InputError(f"{reader.name} has no blocks: the corpus is too small, or valid_fraction too large")
        self._block_order = lru_cache(maxsize=1)(self._order_of_blocks)
        self.window = lru_cache(maxsize=2)(self._make_window)

    @cached_property
    def windows_per_epoch(self) -> int:
        width = self.window_blocks
        if self.least_sequences and self.blocks > width:
            found = self._plan(self._block_order(0)[:width]).num_sequences
            width = max(width, -(-self.least_sequences * width // max(found, 1)))
        windows = max(1, self.blocks // width)
        self.reader.keep_blocks(-(-self.blocks // windows))
        return windows

    def start(self) -> Position:
        return Position()

    def to_json(self, state: Position) -> dict[str, int]:
        return {**asdict(state), "format": FORMAT}

    def from_json(self, values: dict[str, Any]) -> Position:
        keys = ("epoch", "window", "sequence", "number")
        if sorted({*values, "format"}) != sorted([*keys, "format"]) or not all(type(v) is int for v in values.values()):
            raise InputError(
                f"{values} is not a position in one corpus: whole numbers for {', '.join(keys)} are needed"
            )
        if (found := values.get("format", 1)) != FORMAT:
            raise InputError(
                f"its place in the data is of format {found}, this version has format {FORMAT} and hands out sequences "
                "in another order: this version cannot go on with the run. Start a new one in another run_dir, "
                "perhaps from its exported weights (pretrain-export, then model.init_from)"
            )
        return Position(**{key: values[key] for key in keys})

    def number(self, state: Position) -> int:
        return state.number

    def passes(self, state: Position) -> int:
        return self.advance(state, 0).epoch

    def drawn(self, state: Position) -> Mapping[str, int]:
        return {}

    def advance(self, state: Position, count: int) -> Position:
        """Raises InputError where no document of the split gives a sequence."""
        epoch, window, sequence = state.epoch, state.window, state.sequence + count
        empty = 0  # windows in a row without a sequence: the last block of an epoch may hold a single tiny document
        # A plan reads no documents. But how many sequences a window has is known only from its plan: skipping many
        # windows plans each of them.
        while sequence >= (available := len(self.window(epoch, window).order)):
            empty = 0 if available else empty + 1
            if empty > 2 * self.windows_per_epoch:  # every window of a whole epoch
                raise InputError(f"{self.reader.name.rstrip(',')}: its documents are too short for a single sequence")
            sequence -= available
            window += 1
            if window == self.windows_per_epoch:
                epoch, window = epoch + 1, 0
        return Position(epoch, window, sequence, state.number + count)

    def sequence(self, state: Position) -> list[Any]:
        """The segments that the packing put into the sequence at `state`, as it cuts them."""
        state = self.advance(state, 0)  # a state may point to a window without a sequence
        window = self.window(state.epoch, state.window)
        return [
            self.packing.cut(self._document(window, segment.document), segment)
            for segment in window.plan.segments(int(window.order[state.sequence]))
        ]

    def origins(self, state: Position) -> list[Origin]:
        """Which documents the sequence at `state` consists of. Reads none of them."""
        state = self.advance(state, 0)
        window, names = self.window(state.epoch, state.window), self.reader.shard_names
        found = []
        for segment in window.plan.segments(int(window.order[state.sequence])):
            block, document = (int(x) for x in window.documents[segment.document])
            shard, number = window.blocks[block]
            found.append(Origin(names[shard], number, document, segment.start, segment.stop))
        return found

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
        first, last = (number * self.blocks // self.windows_per_epoch for number in (window, window + 1))
        blocks = self._block_order(epoch)[first:last]
        documents = np.array([(i, d) for i, b in enumerate(blocks) for d in range(len(self._lengths(b)))])
        # Key 0 is the order of the epoch's blocks.
        order = generator(self.seed, Purpose.ORDER, epoch, window + 1).permutation(len(documents))
        plan = self._plan(blocks, order)
        # Numbers of sequences are permuted, not what a plan says of them: partners stay those of the packing.
        sequences = generator(self.seed, Purpose.SEQUENCES, epoch, window).permutation(plan.num_sequences)
        return Window(blocks, documents[order], plan, sequences)

    def _plan(self, blocks: Sequence[Block], order: np.ndarray | None = None) -> PackingPlan:
        """order: int [documents], in which the blocks' documents are packed; None as they stand."""
        lengths = np.concatenate([self._lengths(block) for block in blocks])
        if order is None:
            order = np.arange(len(lengths))
        return self.packing.plan(lengths[order], lambda: self._sentences(blocks, lengths, order))

    def _sentences(self, blocks: Sequence[Block], lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Where sentences start once the blocks' documents, of these lengths, stand in this order."""
        sizes = [int(self._lengths(block).sum()) for block in blocks]
        firsts = np.cumsum([0, *sizes[:-1]])
        starts = np.concatenate(
            [self.reader.sentence_starts(*block) + f for block, f in zip(blocks, firsts, strict=True)]
        )
        before = np.cumsum(lengths, dtype=np.int64) - lengths  # where each document starts
        after = np.cumsum(lengths[order], dtype=np.int64) - lengths[order]
        first = np.searchsorted(starts, np.append(before, sum(sizes)))  # sentence of each document
        counts = np.diff(first)[order]
        moved = np.arange(len(starts)) - np.repeat(np.cumsum(counts) - counts - first[order], counts)
        return starts[moved] + np.repeat(after - before[order], counts)

    def _lengths(self, block: Block) -> np.ndarray:
        return self.reader.document_lengths(*block)

    def _order_of_blocks(self, epoch: int) -> list[Block]:
        """Blocks shuffled among `window_shards` shards at a time: a window opens a bounded number of shards."""
        shards = np.arange(len(self.reader.blocks_per_shard))
        rng = generator(self.seed, Purpose.ORDER, epoch, 0)
        rng.shuffle(shards)
        order: list[Block] = []
        for first in range(0, len(shards), self.window_shards):
            group = [
                (int(s), b)
                for s in shards[first : first + self.window_shards]
                for b in range(self.reader.blocks_per_shard[s])
            ]
            order += [group[i] for i in rng.permutation(len(group))]
        return order

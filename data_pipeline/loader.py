"""Worker processes that turn sequences into micro-batches: (micro-batch, the source's state after its global batch).

Global batch t is the next `global_batch_size` sequences. Its micro-batches are dealt to the data-parallel ranks
in turn, and those of a rank to its workers in turn, so that neither changes what a global batch holds.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_pipeline.common.errors import InputError
from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.sequence_source import SequenceSource, State

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

Sample = dict[str, np.ndarray]
_DEATH_SECONDS = 5.0  # a process's connections are closed before it has ended
ALIGNMENT = 64  # bytes, of each array within a micro-batch's one buffer


class SampleMaker(Protocol):
    """The data side of an objective (numpy, pure)."""

    def packing(self) -> Packing:
        """How documents are cut into sequences."""
        ...

    def corrupt(self, segments: Sequence[Any], rng: np.random.Generator) -> Sample:
        """One sequence, as the packing cut it, as a sample."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """Samples as one micro-batch, padded to shapes that do not depend on their content."""
        ...

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """For each loss term, the number of things its sum runs over."""
        ...

    def size(self, sample: Sample) -> int:
        """What throughput counts: tokens without padding, or 1 for an image."""
        ...

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        """Bytes of the text that the samples' targets spell; 0 where they spell none."""
        ...

    def for_evaluation(self) -> SampleMaker:
        """The maker for validation, without augmentation; itself where it has none."""
        ...


@dataclass
class MicroBatch:
    """What one rank feeds to one forward pass.

    arrays: [micro_batch_size, ...], numpy in a worker, torch tensors once out of the loader.
    counts: for each loss term, the number of things its sum runs over.
    samples: 0 where the data ended before this micro-batch; its arrays then hold a sample that counts for nothing.
    target_bytes: see SampleMaker; counted where a number of passes was asked for.
    content_hash: sum modulo 2^64 of a hash of each corrupted, unpadded sample.
    """

    arrays: dict[str, Any]
    counts: dict[str, int]
    samples: int
    tokens: int
    content_hash: int
    target_bytes: int = 0


@dataclass(frozen=True)
class Fault:
    """An input error that a worker ran into: handed on as an item, so that all ranks can stop together. is_lost: the
    worker itself is gone, killed or out of memory, which a restart fixes."""

    message: str
    is_lost: bool = False


@dataclass(frozen=True)
class RankSlice:
    """Which micro-batches of each global batch a rank takes."""

    global_batch_size: int
    micro_batch_size: int
    data_rank: int = 0
    data_size: int = 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in one step (gradient accumulation)."""
        return self.global_batch_size // (self.micro_batch_size * self.data_size)

    def first_sequence(self, micro_batch: int) -> int:
        """Where the rank's `micro_batch`-th begins within the global batch."""
        return (micro_batch * self.data_size + self.data_rank) * self.micro_batch_size


def sample_hash(sample: Sample) -> int:
    """64 bits of the sample's content: names, types, shapes and values of its arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return int.from_bytes(digest.digest(), "little")


def micro_batches(
    source: SequenceSource[State],
    maker: SampleMaker,
    rank_slice: RankSlice,
    state: State,
    worker: int = 0,
    num_workers: int = 1,
    passes: int | None = None,
) -> Iterator[tuple[MicroBatch, State]]:
    """The micro-batches of one worker, without end, each with the state after its global batch.

    passes: after so many over the data they end, on all ranks with the same global batch, and no sequence of a further
    pass is counted.
    """
    turn = 0
    while passes is None or source.passes(state) < passes:
        after = source.advance(state, rank_slice.global_batch_size)
        for index in range(rank_slice.micro_batches):
            if turn % num_workers == worker:
                first = source.advance(state, rank_slice.first_sequence(index))
                yield _make(source, maker, rank_slice.micro_batch_size, first, passes), after
            turn += 1
        state = after


def _make(source: SequenceSource[State], maker: SampleMaker, size: int, state: State, passes: int | None) -> MicroBatch:
    samples: list[Sample] = []
    beyond = passes is not None and source.passes(state) >= passes
    for _ in range(size):
        if samples and passes is not None and source.passes(state) >= passes:
            break
        # Keyed by the sample's number in the whole job: no rank, worker or micro-batch size changes a sample.
        rng = generator(source.seed, Purpose.CORRUPTION, source.number(state))
        samples.append(maker.corrupt(source.sequence(state), rng))
        state = source.advance(state, 1)
    if beyond:  # a forward needs something: a rank that left one out would leave others waiting in a collective
        return MicroBatch(maker.collate(samples), dict.fromkeys(maker.counts(samples), 0), 0, 0, 0)
    return MicroBatch(
        maker.collate(samples),
        maker.counts(samples),
        len(samples),
        sum(maker.size(s) for s in samples),
        sum(map(sample_hash, samples)) % 2**64,
        0 if passes is None else maker.target_bytes(samples),
    )


def load(
    source: SequenceSource[State],
    maker: SampleMaker,
    rank_slice: RankSlice,
    state: State,
    num_workers: int,
    pin_memory: bool = False,
    passes: int | None = None,
) -> Iterator[tuple[MicroBatch | Fault, State]]:
    """As `micro_batches`, made in `num_workers` processes (0: in this one), arrays as torch tensors."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _dataset(source, maker, rank_slice, state, passes),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=4 if num_workers else None,
    )
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = [child.sentinel for child in set(multiprocessing.active_children()) - others]
    if workers and threading.current_thread() is threading.main_thread():
        # The DataLoader's own handler raises where the main thread happens to be when a worker dies, in a backward say
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _until_lost(items, state, workers)


def _until_lost(
    items: Iterator[tuple[_PackedBatch | Fault, State]], state: State, workers: Sequence[int]
) -> Iterator[tuple[MicroBatch | Fault, State]]:
    """Ends with a Fault where one of `workers` (sentinels of processes) has died."""
    try:
        for item, after in items:
            yield (item.unpacked() if isinstance(item, _PackedBatch) else item), after
            state = after
    except (RuntimeError, OSError, EOFError) as error:  # the DataLoader's, or that of a connection to the worker
        if not connection.wait(workers, timeout=_DEATH_SECONDS):
            raise
        yield Fault(f"a data worker died without a word: killed, or out of memory ({error})", is_lost=True), state


def _dataset(
    source: SequenceSource[State], maker: SampleMaker, rank_slice: RankSlice, state: State, passes: int | None
) -> IterableDataset[tuple[_PackedBatch | Fault, State]]:
    from torch.utils.data import IterableDataset, get_worker_info

    class Dataset(IterableDataset):
        def __iter__(self) -> Iterator[tuple[_PackedBatch | Fault, State]]:
            info = get_worker_info()
            worker, workers = (info.id, info.num_workers) if info else (0, 1)
            try:
                for batch, after in micro_batches(source, maker, rank_slice, state, worker, workers, passes):
                    yield _PackedBatch.of(batch), after
            except InputError as error:
                while True:  # a worker that ended would be taken for an end of the data
                    yield Fault(str(error)), state

    return Dataset()


@dataclass
class _PackedBatch:
    """A micro-batch on its way out of a worker. Its arrays lie in one tensor: each tensor costs a file descriptor
    that is handed over through a socket (about 1 ms). DataLoader calls `pin_memory` where it finds one."""

    batch: MicroBatch  # without its arrays
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]]
    content: Any  # uint8 [bytes of all arrays]

    @staticmethod
    def of(batch: MicroBatch) -> _PackedBatch:
        import torch

        layout = {name: (array.dtype, array.shape) for name, array in batch.arrays.items()}
        flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in batch.arrays.values()]
        padded = [np.pad(array, (0, -array.size % ALIGNMENT)) for array in flat]
        return _PackedBatch(replace(batch, arrays={}), layout, torch.from_numpy(np.concatenate(padded)))

    def pin_memory(self) -> _PackedBatch:
        return replace(self, content=self.content.pin_memory())

    def unpacked(self) -> MicroBatch:
        """The micro-batch, its arrays as views of `content`."""
        import torch

        arrays, begin = {}, 0
        for name, (dtype, shape) in self.layout.items():
            size = math.prod(shape) * dtype.itemsize
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            arrays[name] = self.content[begin : begin + size].view(kind).view(shape)
            begin += size + -size % ALIGNMENT
        return replace(self.batch, arrays=arrays)


def _start_worker(worker: int) -> None:
    import torch

    torch.set_num_threads(1)
    # The parent decides what a signal to the job means: a worker that obeyed it would end before the last checkpoint.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(signum, signal.SIG_IGN)

"""What reaches the trainer: this rank's micro-batches of each step, and the step's totals over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.loader import Fault, MicroBatch, RankSlice, Sample, load
from data_pipeline.stream.sequence_source import Origin, Part, SequenceSource
from pretraining.objectives.base import Objective
from pretraining.parallel.host import host_sum, raise_on_all_ranks
from pretraining.parallel.memory import peak_bytes
from pretraining.parallel.world import World
from pretraining.run.phases import Phases
from pretraining.run.signals import StopRequest
from pretraining.run.terminal import warn

Json = dict[str, Any]  # the state of a SequenceSource: plain values, which only the source reads
Feed = Iterator[tuple[MicroBatch | Fault, Json]]


@dataclass(frozen=True)
class Feeds:
    """Training and validation data as one rank takes them, micro-batch by micro-batch.

    share: which micro-batches of each global batch are this rank's. num_workers: processes that make training samples.
    """

    source: SequenceSource[Any]
    validation_source: SequenceSource[Any]
    objective: Objective
    share: RankSlice
    num_workers: int
    pin_memory: bool

    def start(self) -> Json:
        """Before the first training sequence."""
        return self.source.to_json(self.source.start())

    def samples(self, position: Json) -> int:
        """How many training sequences were handed out before this position."""
        return self.source.number(self.source.from_json(position))

    def drawn(self, position: Json) -> Mapping[str, int]:
        """How many of these each corpus of a mixture has given; none of a single corpus."""
        return self.source.drawn(self.source.from_json(position))

    def origins(self, position: Json, count: int) -> list[tuple[int, Sequence[Origin]]]:
        """(global number, documents) of each of the `count` training sequences from `position` on."""
        state, found = self.source.from_json(position), []
        for _ in range(count):
            found.append((self.source.number(state), self.source.origins(state)))
            state = self.source.advance(state, 1)
        return found

    def sample(self, position: Json, number: int) -> Sample:
        """The training sample `number` places after a position, as a global batch has it."""
        state = self.source.advance(self.source.from_json(position), number)
        rng = generator(self.source.seed, Purpose.CORRUPTION, self.source.number(state))
        return self.objective.corrupt(self.source.sequence(state), rng)

    def training(self, position: Json) -> Feed:
        """Micro-batches from there on, without end, each with the position after its global batch."""
        state = self.source.from_json(position)
        make = partial(load, num_workers=self.num_workers, pin_memory=self.pin_memory)
        return ((item, self.source.to_json(s)) for item, s in make(self.source, self.objective, self.share, state))

    def first_validation(self, count: int) -> list[Sample]:
        """The first samples of the validation data, unaugmented; fewer where it has fewer."""
        source, objective = self.validation_source, self.objective.for_evaluation()
        state, samples = source.start(), list[Sample]()
        while len(samples) < count and source.passes(state) == 0:
            rng = generator(source.seed, Purpose.CORRUPTION, source.number(state))
            samples.append(objective.corrupt(source.sequence(state), rng))
            state = source.advance(state, 1)
        return samples

    def validations(self) -> Iterator[tuple[str, float, Feed]]:
        """(name, share, micro-batches) of each corpus of a mixture; of a single one without a name. All of its
        validation data once from their beginning, unaugmented."""
        parts = self.validation_source.parts or {"": Part(self.validation_source, 1.0)}
        return ((name, part.share, self._once(part.source)) for name, part in parts.items())

    def _once(self, source: SequenceSource[Any]) -> Feed:
        objective = self.objective.for_evaluation()
        feed = load(source, objective, self.share, source.start(), num_workers=0, passes=1)
        return ((item, source.to_json(state)) for item, state in feed)


@dataclass(frozen=True)
class StepTotals:
    """One step, summed over all data-parallel ranks.

    counts: of each term and metric, what its sum runs over. units: tokens without padding, or images. target_bytes: of
    text that is predicted, in an evaluation. batch_hash: does not depend on the order of samples, nor on which rank
    held them. faulty: some micro-batch could not be made. stop: some rank was asked to stop. spiked: some rank saw a
    loss spike. rank_seconds: of each rank's own work in the step before. peak_bytes: of the rank that has taken most.
    """

    counts: dict[str, float]
    units: int
    target_bytes: int
    batch_hash: int
    faulty: bool
    stop: bool
    spiked: bool = False
    rank_seconds: tuple[float, ...] = ()
    peak_bytes: int = 0

    @classmethod
    def reduce(
        cls,
        world: World,
        names: Sequence[str],
        batches: Sequence[MicroBatch],
        faulty: bool,
        stop: bool,
        spiked: bool = False,
        own_seconds: float | None = None,
        own_bytes: int | None = None,
    ) -> StepTotals:
        """names: of the terms and metrics. own_seconds, own_bytes: None, on all ranks, leaves rank_seconds and
        peak_bytes empty. In one collective of all ranks, on the host."""
        content = sum(batch.content_hash for batch in batches) % 2**64
        mine = {
            "units": sum(batch.tokens for batch in batches),
            "target_bytes": sum(batch.target_bytes for batch in batches),
            "hash_low": content % 2**32,  # in halves: sums are fp64, which is exact to 2^53
            "hash_high": content >> 32,
            "faulty": faulty,
            "stop": stop,
            "spiked": spiked,
            **{f"count of {name}": sum(batch.counts[name] for batch in batches) for name in names},
        }
        seconds, peaks = (_slots(world, value) for value in (own_seconds, own_bytes))
        sums = host_sum(world, [*(float(value) for value in mine.values()), *seconds, *peaks])
        total = dict(zip(mine, sums, strict=False))
        of_ranks = sums[len(mine) :]
        return cls(
            counts={name: total[f"count of {name}"] for name in names},
            units=int(total["units"]),
            target_bytes=int(total["target_bytes"]),
            batch_hash=(int(total["hash_low"]) + (int(total["hash_high"]) << 32)) % 2**64,
            faulty=total["faulty"] > 0,  # not >= 1, see host_sum
            stop=total["stop"] > 0,
            spiked=total["spiked"] > 0,
            rank_seconds=tuple(of_ranks[: len(seconds)]),
            peak_bytes=int(max(of_ranks[len(seconds) :], default=0)),
        )


def _slots(world: World, own: float | None) -> list[float]:
    """One place for each rank, of which this one fills its own; none where it has nothing."""
    if own is None:
        return []
    slots = [0.0] * world.size
    slots[world.rank] = own * world.mesh.batch_readers  # see host_sum: no other rank has it
    return slots


@dataclass(frozen=True)
class StepData:
    """What this rank does in one step. position: of the training data after the step's global batch."""

    micro_batches: list[MicroBatch]
    position: Json
    totals: StepTotals


def gather_steps(
    feed: Feed,
    micro_batches: int,
    names: Sequence[str],
    world: World,
    stop: StopRequest,
    phases: Phases | None = None,
    spiked: Callable[[], bool] = lambda: False,
) -> Generator[StepData]:
    """micro_batches: of this rank in one step. spiked: whether this rank saw a loss spike. Ends with the feed, whose
    last step is whole. Raises InputError, on all ranks, where one of them met a fault in the data; a worker that died
    asks for a stop."""
    phases = phases or Phases()
    phases.enter("data")
    while items := list(islice(feed, micro_batches)):
        phases.enter("exchange")
        faults = [item.message for item, _ in items if isinstance(item, Fault) and not item.is_lost]
        for item, _ in items:
            if isinstance(item, Fault) and item.is_lost:
                warn(f"rank {world.rank}: {item.message}")
                stop.ask(item.message)
        batches = [item for item, _ in items if isinstance(item, MicroBatch)]
        seconds = phases.take_own_seconds()
        totals = StepTotals.reduce(
            world,
            names,
            batches,
            bool(faults),
            stop.reason is not None,
            spiked(),
            seconds if world.size > 1 else None,
            peak_bytes(world.device),
        )
        if totals.faulty:
            raise_on_all_ranks(world, faults[0] if faults else None)
        yield StepData(batches, items[-1][1], totals)
        phases.enter("data")

"""What reaches the trainer: this rank's micro-batches of each step, and the step's totals over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from data_pipeline.loader import Fault, MicroBatch, RankSlice, load
from data_pipeline.stream.sequence_source import SequenceSource
from pretraining.objectives.base import Objective
from pretraining.parallel.host import host_sum, raise_on_all_ranks
from pretraining.parallel.world import World
from pretraining.run.signals import StopRequest

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

    def training(self, position: Json) -> Feed:
        """Micro-batches from there on, without end, each with the position after its global batch."""
        state = self.source.from_json(position)
        make = partial(load, num_workers=self.num_workers, pin_memory=self.pin_memory)
        return ((item, self.source.to_json(s)) for item, s in make(self.source, self.objective, self.share, state))

    def validation(self) -> Feed:
        """The same of the validation data: all of them once from their beginning, unaugmented."""
        source, objective = self.validation_source, self.objective.for_evaluation()
        feed = load(source, objective, self.share, source.start(), num_workers=0, passes=1)
        return ((item, source.to_json(state)) for item, state in feed)


@dataclass(frozen=True)
class StepTotals:
    """One step, summed over all data-parallel ranks.

    counts: of each term and metric, what its sum runs over. units: tokens without padding, or images. target_bytes: of
    text that is predicted, in an evaluation. batch_hash: does not depend on the order of samples, nor on which rank
    held them. faulty: some micro-batch could not be made. stop: some rank was asked to stop.
    """

    counts: dict[str, float]
    units: int
    target_bytes: int
    batch_hash: int
    faulty: bool
    stop: bool

    @classmethod
    def reduce(
        cls, world: World, names: Sequence[str], batches: Sequence[MicroBatch], faulty: bool, stop: bool
    ) -> StepTotals:
        """names: of the terms and metrics. In one collective of all ranks, on the host."""
        content = sum(batch.content_hash for batch in batches) % 2**64
        mine = {
            "units": sum(batch.tokens for batch in batches),
            "target_bytes": sum(batch.target_bytes for batch in batches),
            "hash_low": content % 2**32,  # in halves: sums are fp64, which is exact to 2^53
            "hash_high": content >> 32,
            "faulty": faulty,
            "stop": stop,
            **{f"count of {name}": sum(batch.counts[name] for batch in batches) for name in names},
        }
        total = dict(zip(mine, host_sum(world, [float(value) for value in mine.values()]), strict=True))
        return cls(
            counts={name: total[f"count of {name}"] for name in names},
            units=int(total["units"]),
            target_bytes=int(total["target_bytes"]),
            batch_hash=(int(total["hash_low"]) + (int(total["hash_high"]) << 32)) % 2**64,
            faulty=total["faulty"] > 0,  # not >= 1, see host_sum
            stop=total["stop"] > 0,
        )


@dataclass(frozen=True)
class StepData:
    """What this rank does in one step. position: of the training data after the step's global batch."""

    micro_batches: list[MicroBatch]
    position: Json
    totals: StepTotals


def gather_steps(
    feed: Feed, micro_batches: int, names: Sequence[str], world: World, stop: StopRequest
) -> Iterator[StepData]:
    """micro_batches: of this rank in one step. Ends with the feed, whose last step is whole. Raises InputError, on all
    ranks, where one of them met a fault in the data."""
    while items := list(islice(feed, micro_batches)):
        faults = [item.message for item, _ in items if isinstance(item, Fault)]
        batches = [item for item, _ in items if isinstance(item, MicroBatch)]
        totals = StepTotals.reduce(world, names, batches, bool(faults), stop.reason is not None)
        if totals.faulty:
            raise_on_all_ranks(world, faults[0] if faults else None)
        yield StepData(batches, items[-1][1], totals)

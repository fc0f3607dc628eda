"""Means over the validation data: of one corpus, or of each corpus of a mixture and of all by their shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretraining.engines.base import Engine
from pretraining.feeds import Feed, Feeds, gather_steps
from pretraining.objectives.base import Objective
from pretraining.parallel.host import host_sum
from pretraining.parallel.world import World
from pretraining.run.metrics import means
from pretraining.run.phases import Phases
from pretraining.run.signals import StopRequest


@dataclass(frozen=True)
class Sums:
    """Over all ranks. sums, counts: of each term and metric. units: tokens without padding, or images. text_bytes: of
    the text in the targets. batches: global ones."""

    sums: Mapping[str, float]
    counts: Mapping[str, float]
    units: int
    text_bytes: int
    batches: int

    def bits_per_byte(self, term: str | None) -> float | None:
        """term: the one that is a sum over the tokens of text; None, there and here, where there is none."""
        if term is None or not self.text_bytes:
            return None
        return self.sums[term] / math.log(2) / self.text_bytes


@dataclass(frozen=True)
class Evaluation:
    """parts: the means of terms and metrics where there are several, and in a mixture what each corpus has by itself,
    as loss/NAME. lacking: terms without a target. batches: of the corpus that has fewest."""

    loss: float
    parts: dict[str, float]
    lacking: list[str]
    units: int
    bits_per_byte: float | None
    batches: int


def evaluate(
    engine: Engine,
    objective: Objective,
    feeds: Feeds,
    world: World,
    stop: StopRequest,
    phases: Phases,
    most_batches: int | None,
) -> Evaluation | None:
    """Over the first `most_batches` global batches (None: all) of the validation data, in a mixture of each corpus'.
    None where a stop was asked for meanwhile. A collective of all ranks."""
    found: dict[str, tuple[float, Sums]] = {}
    for name, share, feed in feeds.validations():
        sums = _evaluate(engine, objective, feed, feeds.share.micro_batches, world, stop, phases, most_batches)
        if sums is None:
            return None
        found[name] = (share, sums)
    if "" in found:
        return _of_one(objective, found[""][1])
    return _of_mixture(objective, found)


def _of_one(objective: Objective, sums: Sums) -> Evaluation:
    loss, parts, lacking = means(sums.sums, sums.counts, objective.terms)
    return Evaluation(loss, parts, lacking, sums.units, sums.bits_per_byte(objective.text_term), sums.batches)


def _of_mixture(objective: Objective, corpora: Mapping[str, tuple[float, Sums]]) -> Evaluation:
    """Means of the corpora's means by their shares: what the loss of training comes to."""
    alone = {name: _of_one(objective, sums) for name, (_, sums) in corpora.items()}
    every = [*objective.terms, *objective.metrics]
    weights = {k: sum(share for share, s in corpora.values() if s.counts[k]) for k in every}
    values = {k: sum(share * s.sums[k] / s.counts[k] for share, s in corpora.values() if s.counts[k]) for k in every}
    loss, parts, lacking = means(values, weights, objective.terms)
    for name, found in alone.items():
        parts[f"loss/{name}"] = found.loss
        parts |= {f"{key}/{name}": value for key, value in found.parts.items()}
        if found.bits_per_byte is not None:
            parts[f"bits_per_byte/{name}"] = found.bits_per_byte
    bits = [(corpora[name][0], found.bits_per_byte) for name, found in alone.items() if found.bits_per_byte is not None]
    return Evaluation(
        loss,
        parts,
        lacking,
        sum(found.units for found in alone.values()),
        sum(share * value for share, value in bits) / sum(share for share, _ in bits) if bits else None,
        min(found.batches for found in alone.values()),
    )


def _evaluate(
    engine: Engine,
    objective: Objective,
    feed: Feed,
    micro_batches: int,
    world: World,
    stop: StopRequest,
    phases: Phases,
    most_batches: int | None,
) -> Sums | None:
    names: Sequence[str] = [*objective.terms, *objective.metrics]
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    units = text_bytes = batches = 0
    for data in itertools.islice(gather_steps(feed, micro_batches, names, world, stop, phases), most_batches):
        if data.totals.stop:
            return None
        batches += 1
        for batch in data.micro_batches:
            found = engine.evaluate(batch.arrays)  # also where the rank's share is empty: others wait for it
            for name, value in found.items() if batch.samples else ():
                sums[name] += float(value)
        for name, count in data.totals.counts.items():
            counts[name] += count
        units, text_bytes = units + data.totals.units, text_bytes + data.totals.target_bytes
    totals = dict(zip(names, host_sum(world, list(sums.values())), strict=True))
    return Sums(totals, counts, units, text_bytes, batches)

"""Which ranks are slower, or were given less, than the others.

The rule: a figure is an outlier where it is below the median of the other ranks' figures both by more than a fraction
of it (a tenth; half for the disk, whose speed varies) and by more than their standard deviation. Cores must not be
fewer than that median. A node is named where one of its ranks is an outlier or has a fault, unless these are more than
half of the nodes: then nobody can tell which are the slow ones.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pretraining.cluster.health import Health

# Of each figure: its name in words, and the fraction below the median.
FIGURES = {
    "cores": ("cores", 0.0),
    "memory_gb": ("GB of memory", 0.1),
    "device_gb": ("GB free on the GPU", 0.1),
    "disk_mb_per_second": ("MB/s to the disk", 0.5),
    "tflops": ("TFLOP/s", 0.1),
    "gb_per_second": ("GB/s of all-reduce", 0.1),
}


@dataclass(frozen=True)
class Verdict:
    """reasons: of each rank that is an outlier. nodes: those to leave out, none where too many would be."""

    reasons: dict[int, list[str]]
    nodes: list[str]


def judge(ranks: Sequence[Health]) -> Verdict:
    reasons = {health.rank: list(health.faults) for health in ranks}
    for name, (words, fraction) in FIGURES.items():
        values = {health.rank: figure(health, name) for health in ranks}
        known = {rank: value for rank, value in values.items() if value is not None}
        for rank in below(known, fraction):
            middle = median_without(sorted(known.values()), known[rank])
            reasons[rank].append(f"{known[rank]:.3g} {words}, the others' median is {middle:.3g}")
    named = {rank: texts for rank, texts in reasons.items() if texts}
    nodes = list(dict.fromkeys(health.node for health in ranks if health.rank in named))
    too_many = 2 * len(nodes) > len({health.node for health in ranks})
    return Verdict(named, [] if too_many else nodes)


def figure(health: Health, name: str) -> float | None:
    value = vars(health)[name]
    assert value is None or isinstance(value, int | float), name
    return value


def below(values: dict[int, float], fraction: float) -> list[int]:
    """The ranks that are outliers by the rule; none of a single one."""
    if len(values) < 2:
        return []
    ordered = sorted(values.values())
    mean = statistics.fmean(ordered)
    squares = math.fsum((value - mean) ** 2 for value in ordered)
    found = []
    for rank, value in values.items():
        middle, spread = median_without(ordered, value), _deviation_without(value - mean, squares, len(ordered))
        if value < middle * (1 - fraction) and value < middle - spread:
            found.append(rank)
    return found


def median_without(ordered: Sequence[float], value: float) -> float:
    """The median of ascending numbers, of at least two, without one of this value."""
    place, count = bisect.bisect_left(ordered, value), len(ordered) - 1
    low, high = ((count - 1) // 2, count // 2)
    return sum(ordered[i + (i >= place)] for i in (low, high)) / 2


def _deviation_without(distance: float, squares: float, count: int) -> float:
    """The standard deviation of `count` numbers without one. distance: its own from their mean. squares: the sum of all
    squared distances."""
    left = squares - distance**2 * count / (count - 1)  # Welford 1962, a step back
    return math.sqrt(max(0.0, left / (count - 1)))

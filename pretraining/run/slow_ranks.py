"""Which rank is the slowest, by the time of the work that each does by itself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class SlowRankWatch:
    """Tells of a rank that is the slowest in STEPS steps in a row, above FACTOR times the median each time."""

    FACTOR, STEPS, LEAST_SECONDS = 1.5, 5, 0.05

    def __init__(self) -> None:
        self.rank, self.in_a_row = -1, 0
        self.told: set[int] = set()

    def see(self, seconds: Sequence[float]) -> str | None:
        """seconds: of own work, by rank -> what to report, once for each rank."""
        if len(seconds) < 2:
            return None
        slowest = max(range(len(seconds)), key=lambda rank: seconds[rank])
        median = statistics.median_low(seconds)  # of two ranks the faster one
        slow = seconds[slowest] > self.FACTOR * median and seconds[slowest] - median > self.LEAST_SECONDS
        self.in_a_row = (self.in_a_row + 1 if slowest == self.rank else 1) if slow else 0
        self.rank = slowest
        if self.in_a_row < self.STEPS or slowest in self.told:
            return None
        self.told.add(slowest)
        return (
            f"warning: rank {slowest} is slow: {seconds[slowest]:.2f} s of data and forward in a step, where the "
            f"median of the ranks is {median:.2f} s"
        )

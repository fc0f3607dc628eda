"""Loss spikes, by a stated rule."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable


class SpikeWatch:
    """A step's loss is a spike where it is above the mean of the last WINDOW steps' losses by more than DEVIATIONS of
    their standard deviations, and by more than LEAST_RISE of their mean; LEAST steps are needed to tell. Skipped steps
    do not count. The losses are part of a run's state: a resumed run finds the same spikes."""

    WINDOW, LEAST, DEVIATIONS, LEAST_RISE = 100, 20, 6.0, 0.1

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.losses: deque[float] = deque(losses, maxlen=self.WINDOW)

    def see(self, loss: float) -> str | None:
        """What to report of a step's loss; None where it is no spike. The loss counts for the steps after it."""
        if not math.isfinite(loss):
            return None
        limit, mean = self._limit()
        self.losses.append(loss)
        if loss <= limit:
            return None
        return f"its loss of {loss:.4g} is a spike: the last {len(self.losses) - 1} steps' had a mean of {mean:.4g}"

    def _limit(self) -> tuple[float, float]:
        """-> (the loss above which a step is a spike, the mean)."""
        if len(self.losses) < self.LEAST:
            return math.inf, math.nan
        mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
        return mean + max(self.DEVIATIONS * deviation, self.LEAST_RISE * abs(mean)), mean

"""Where a rank is in its step: what the watchdog looks at, and how long the rank itself took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Work that a rank does by itself, waiting for no other: what tells a slow rank from those that wait for it. A backward
# waits for others where gradients are reduced, so it is not among these.
OWN_WORK = frozenset({"data", "forward"})


class Phases:
    """The phase that a rank is in: start, data, exchange, forward, backward, step, evaluate, save, end.

    In `exchange` a rank waits for the others' totals. All ranks enter the same phases in the same order: the one that
    has entered the fewest is the one that the others wait for.
    """

    def __init__(self) -> None:
        self.phase, self.step, self.entered = "start", 0, 0
        self.since = time.monotonic()
        self.own_seconds = 0.0  # of OWN_WORK since it was last taken
        self.data_seconds = 0.0  # of waiting for data since it was last taken
        self.describe_batch: Callable[[], str] = lambda: ""  # the one that is being trained on

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        if self.phase in OWN_WORK:
            self.own_seconds += now - self.since
        if self.phase == "data":
            self.data_seconds += now - self.since
        self.phase, self.since = phase, now
        self.entered += 1

    def take_own_seconds(self) -> float:
        """Seconds of own work since this was last called."""
        seconds, self.own_seconds = self.own_seconds, 0.0
        return seconds

    def take_data_seconds(self) -> float:
        """Seconds of waiting for data since this was last called."""
        seconds, self.data_seconds = self.data_seconds, 0.0
        return seconds

    def follow(self, module: nn.Module) -> None:
        """Notes when the module's forward begins, and that what follows it in training is the backward."""
        module.register_forward_pre_hook(lambda m, _: self.enter("forward" if m.training else "evaluate"))
        module.register_forward_hook(lambda m, *_: self.enter("backward") if m.training else None)

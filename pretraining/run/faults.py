"""Signals, and steps that are not finite."""

from __future__ import annotations

import os
import signal
from types import FrameType

from data_pipeline.common.errors import Failure

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Set by a signal; the trainer stops all ranks together after the running step.

    To be installed before torch is imported: a signal that came earlier would kill the rank.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.announces = True  # one rank's message is enough

    def install(self) -> StopRequest:
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        return self

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.reason:  # a second Ctrl-C means it
            raise KeyboardInterrupt
        self.reason = f"stopped by {signal.Signals(signum).name}"
        if signum == signal.SIGINT and self.announces:  # os.write: print may be what was interrupted
            os.write(2, b"\nstopping after this step and saving a checkpoint; Ctrl-C again ends at once\n")


class Stopped(Exception):
    """All ranks agreed to stop; the checkpoint that its message names is saved. Exit code 75: please requeue."""


class NonFiniteWatch:
    """Steps whose gradients are not finite are skipped on the device; many in a row mean divergence."""

    LIMIT = 20

    def __init__(self) -> None:
        self.in_a_row = 0

    def see(self, step: int, finite: bool) -> None:
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row == self.LIMIT:
            raise Failure(
                f"the gradients of the last {self.LIMIT} steps up to step {step} were not finite: "
                "the run has diverged; a smaller optimizer.lr or more warm-up may help"
            )

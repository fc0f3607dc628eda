"""What a trainer holds of its run, and of a step that is on its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretraining.feeds import Json, StepTotals
from pretraining.run.ownership import Ownership
from pretraining.run.phases import Phases
from pretraining.run.profiling import UNPROFILED, StepProfiler
from pretraining.run.run_dir import Identity
from pretraining.run.showing import Showing
from pretraining.run.throughput import Throughput
from pretraining.run.tracking import Tracker


@dataclass(frozen=True)
class Record:
    """Where a run is recorded, and how its speed is counted. identity: what of its config a checkpoint is bound to.
    phases: what the watchdog sees. owner: of the folder, on rank 0 of a run that others could disturb. showing: shows
    samples after an evaluation, on rank 0 of a run that has such."""

    folder: Path
    identity: Identity
    tracker: Tracker
    throughput: Throughput
    phases: Phases
    owner: Ownership | None = None
    showing: Showing | None = None
    profiler: StepProfiler = UNPROFILED


@dataclass(frozen=True)
class Pending:
    """A step whose numbers are still on the device: they are read a step later, so that nothing waits for them.

    numbers: fp32, those of CONTROL, the sums of terms and metrics over all ranks, and of several each rank's own loss.
    start: the position before its batch. seconds: of the step; data_seconds: of these, in which this rank waited for
    data; training_seconds: of all steps so far. measured: by layer, where it was asked for.
    """

    step: int
    start: Json
    lr: float
    samples: int
    units: int  # so far
    totals: StepTotals
    seconds: float
    data_seconds: float
    training_seconds: float
    drawn: Mapping[str, int]  # samples so far, of each corpus of a mixture
    numbers: Tensor
    measured: Tensor | None

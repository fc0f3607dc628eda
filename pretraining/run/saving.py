"""When a run is saved, what is kept of it, and what follows where it cannot be saved.

A checkpoint is good: it follows a step whose gradients were finite, and so do its weights. A save that falls due while
steps are being skipped waits for the next step that is not, and nothing is removed meanwhile: what a diverging run
leaves is what it was before. Under fp16 that is no loss: where the overflow is the loss scale's, the next steps are
finite again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import Failure
from pretraining.config import TrainConfig
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.host import host_sum
from pretraining.parallel.world import World
from pretraining.run.checkpoint import Saver
from pretraining.run.checkpoint_format import checkpoint_folder, newest_checkpoint
from pretraining.run.checkpoint_reader import not_finite
from pretraining.run.metrics import SaveFailedLine
from pretraining.run.retention import make_room, prune_checkpoints
from pretraining.run.run_dir import note_saved
from pretraining.run.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor

MOST_FAILURES = 8  # saves that fail in a row; tried again at once, then after 1, 3, 7, ... steps: some 120 in all
LAST_TRIES = 3  # at the end of a run, where there is no later step


class CheckpointKeeper:
    """Saves a run, on all ranks alike. saved_step: of the newest checkpoint that was started."""

    def __init__(self, train: TrainConfig, world: World, run_dir: Path, tracker: Tracker) -> None:
        self.train, self.world, self.run_dir, self.tracker = train, world, run_dir, tracker
        self.saver = Saver(world)
        self.saved_step, self.failures = -1, 0
        self.due, self.not_before = False, 0
        self.in_flight = False

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step`; a collective while one is being written. Raises Failure
        once too many have failed."""
        if self.in_flight and self._have_all_ended():
            self._settle(step)
        every = self.train.checkpoint_every
        self.due = self.due or (every > 0 and step % every == 0)
        return self.due and step >= self.not_before

    def begin(self, step: int, tensors: list[tuple[Fragment, Tensor]], state: dict[str, Any], prune: bool) -> None:
        """Begins to write a checkpoint of `step`. Raises Failure, on all ranks, where its weights are not finite."""
        if self.in_flight:
            self._settle(step)
        self._require_finite(step, tensors)
        folder = checkpoint_folder(self.run_dir, step)
        self.saver.save(tensors, state, folder, partial(self._after_save, step, prune, time.monotonic()))
        self.in_flight, self.due, self.saved_step = True, False, step

    def finish(self, step: int, save: Callable[[], None]) -> None:
        """Until `step` is saved, which `save` begins. Raises Failure where it cannot be."""
        if self.saved_step != step:
            save()
        for _ in range(LAST_TRIES):
            self._settle(step)
            if self.saved_step == step:
                return
            save()
        self._settle(step)
        if self.saved_step != step:
            raise Failure(f"the last checkpoint, of step {step}, could not be saved: {self.saver.reason}")

    def wait(self) -> None:
        """Until what is being written has ended; for a run that ends by an error, whose peers may be gone."""
        self.saver.wait()

    def newest(self) -> str:
        """The newest whole checkpoint, in words."""
        found = newest_checkpoint(self.run_dir / "checkpoints")
        return "the beginning, since nothing is saved yet" if found is None else str(found.folder)

    def _have_all_ended(self) -> bool:
        return host_sum(self.world, [float(self.saver.is_running)])[0] == 0.0

    def _settle(self, step: int) -> None:
        """Waits for the save in flight, and says at `step` how it ended."""
        if not self.in_flight:
            return
        failed = host_sum(self.world, [float(not self.saver.wait())])[0] > 0.0
        self.in_flight = False
        if not failed:
            self.failures = 0
            self.tracker.saved(checkpoint_folder(self.run_dir, self.saved_step))
            return
        self.failures += 1
        self.saved_step, self.due, self.not_before = -1, True, step + 2 ** (self.failures - 1) - 1
        self.tracker.log(SaveFailedLine(step, self.saver.reason, self.failures))
        if self.world.is_main:
            make_room(self.run_dir / "checkpoints", self.train.keep_last, self.train.keep_every)
        if self.failures == MOST_FAILURES:
            raise Failure(
                f"{self.failures} checkpoints in a row could not be saved, the last at step {step} "
                f"({self.saver.reason}): the run stops while little is lost. It goes on from {self.newest()}"
            )

    def _after_save(self, step: int, prune: bool, began: float) -> None:
        note_saved(self.run_dir, step, time.monotonic() - began)
        if prune:
            prune_checkpoints(self.run_dir / "checkpoints", self.train.keep_last, self.train.keep_every)

    def _require_finite(self, step: int, tensors: list[tuple[Fragment, Tensor]]) -> None:
        broken = not_finite(tensors)
        if host_sum(self.world, [float(len(broken))])[0] > 0.0:
            where = f" ({broken[0]})" if broken else ""
            raise Failure(
                f"after step {step}, whose gradients were finite, weights or averages are not{where}: nothing is saved "
                f"of it. The run goes on from {self.newest()}; should the same happen again, a smaller optimizer.lr or "
                "more warm-up may help, else suspect the hardware"
            )

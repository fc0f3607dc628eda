"""Faults that a run brings on itself: `modules=[tests.faults.inject]` and FAULT in the environment.

FAULT=KIND:RANK:STEP, e.g. hang_data:1:5; KIND is a function below. Steps count from 1, as those of metrics.jsonl.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pretraining.engines.base import EngineBase, LossModule
from pretraining.feeds import StepTotals
from pretraining.optim.base import Optimizer
from pretraining.run.checkpoint import Saver
from pretraining.trainer import Trainer

KIND, RANK, STEP = os.environ["FAULT"].split(":")
HERE = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
FOREVER = 3600.0
now = {"step": 0, "sample": 0}  # the step that is being trained, and the number of its first sample


def around(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def before(owner: Any, name: str, act: Callable[[], None]) -> None:
    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any, **named: Any) -> Any:
            act()
            return function(*arguments, **named)

        return acting

    around(owner, name, make)


def note_step() -> None:
    def make(train_step: Callable[..., Any]) -> Callable[..., Any]:
        def noting(self: Trainer, data: Any, began: float) -> float:
            now.update(step=self.step + 1, sample=self.feeds.samples(self.position))
            result = train_step(self, data, began)
            now["step"] = self.step + 1  # the data of the next step comes next
            return result

        return noting

    around(Trainer, "train_step", make)


def is_due() -> bool:
    return HERE in RANK.split(",") and now["step"] == int(STEP)


def is_bad() -> bool:
    """By the batch, which holds sample number STEP, on all ranks: passing over the batch cures it."""
    return now["sample"] <= int(STEP) < now["sample"] + 8


def scaled(factor: float, due: Callable[[], bool]) -> None:
    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        def changing(self: LossModule, batch: Any) -> Any:
            sums = forward(self, batch)
            return {k: v * factor for k, v in sums.items()} if self.training and due() else sums

        return changing

    around(LossModule, "forward", make)


def sleep(seconds: float, due: Callable[[], bool] = is_due) -> Callable[[], None]:
    return lambda: time.sleep(seconds) if due() else None


def kill_worker() -> None:
    """The first data worker, as the kernel does where memory is short."""
    import pretraining.feeds as feeds

    before(feeds, "islice", lambda: multiprocessing.active_children()[0].kill() if is_due() else None)


def hang_data() -> None:
    import pretraining.feeds as feeds

    before(feeds, "islice", sleep(FOREVER))


def hang_forward() -> None:
    before(LossModule, "forward", sleep(FOREVER))


def hang_backward() -> None:
    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(self: LossModule, batch: Any) -> Any:
            sums = forward(self, batch)
            for value in sums.values():
                if value.requires_grad:
                    value.register_hook(lambda _: sleep(FOREVER)())
            return sums

        return hooked

    around(LossModule, "forward", make)


def hang_step() -> None:
    before(Optimizer, "step", sleep(FOREVER))


def hang_exchange() -> None:
    """Within the collective: the others are in it as well."""

    def make(reduce: Any) -> Any:
        def acting(*arguments: Any, **named: Any) -> Any:
            sleep(FOREVER)()
            return reduce(*arguments, **named)

        return acting

    StepTotals.reduce = make(StepTotals.reduce)  # type: ignore[method-assign]


def hang_save() -> None:
    before(Saver, "save", sleep(FOREVER))


def crash() -> None:
    def act() -> None:
        if is_due():
            raise ArithmeticError("a planted fault")

    before(LossModule, "forward", act)


def kill_itself() -> None:
    before(LossModule, "forward", lambda: os.kill(os.getpid(), 9) if is_due() else None)


def stop_in_evaluation() -> None:
    """A signal to one rank, while all evaluate before step STEP."""

    def make(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def stopping(self: EngineBase, batch: Any) -> Any:
            if is_due():
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(self, batch)

        return stopping

    around(EngineBase, "evaluate", make)


def slow() -> None:
    before(LossModule, "forward", sleep(0.1, lambda: RANK == HERE))


def kill_in_data() -> None:
    import pretraining.feeds as feeds

    before(feeds, "islice", lambda: os.kill(os.getpid(), 9) if is_due() else None)


def nan() -> None:
    scaled(float("nan"), is_due)


def nan_from() -> None:
    scaled(float("nan"), lambda: RANK == HERE and now["step"] >= int(STEP))


def spike() -> None:
    scaled(30.0, is_bad)


def spike_kill() -> None:
    """All ranks are killed once the run has been rolled back, before the next checkpoint."""
    spike()

    def is_rolled_back() -> bool:
        return now["sample"] > int(STEP) + 8 and now["step"] <= int(STEP) // 8

    before(LossModule, "forward", lambda: os.kill(os.getpid(), 9) if is_rolled_back() else None)


def spike_stop() -> None:
    """A stop is asked for in the bad step itself."""
    spike()
    before(LossModule, "forward", lambda: os.kill(os.getpid(), signal.SIGTERM) if is_bad() else None)


note_step()
globals()[KIND]()

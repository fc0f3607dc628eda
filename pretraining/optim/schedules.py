"""Learning-rate schedules: pure functions of the update's number. Each has a class with the keys that it uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from data_pipeline.common.fields import Fraction, NonNegative, PositiveFloat, configclass, used_with


@configclass
class ScheduleConfig:
    """The learning rate relative to its peak, at update 1, 2, ..., `steps`: a linear rise, then what a class adds.

    Update t is the one that authors' code numbers t - 1: after the warm-up it has the rate of their step t - 1, so
    that the last update is not lost to a rate of 0. The rise is one update ahead of theirs: the first has 1 / warm-up
    of the peak, not 0.

    name: which schedule it is.
    warmup_steps: updates over which the learning rate rises linearly to its peak; null means warmup_fraction.
    warmup_fraction: the same as a share of train.steps.
    warmup_start: where the rise begins, as a fraction of the peak.
    """

    name: str
    warmup_steps: NonNegative | None = None
    warmup_fraction: Annotated[Fraction, used_with("warmup_steps", None)] = 0.1
    warmup_start: Fraction = 0.0

    def warmup(self, steps: int) -> int:
        """The updates over which it rises, of `steps` in all."""
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def ratio(self, step: int, steps: int) -> float:
        """The learning rate of update `step` (from 1) as a fraction of the peak."""
        warmup = self.warmup(steps)
        if step <= warmup:
            return self.warmup_start + (1 - self.warmup_start) * step / warmup
        return self.after_warmup(step, steps)

    def after_warmup(self, step: int, steps: int) -> float:
        """The same for the updates after the warm-up."""
        raise NotImplementedError

    def progress(self, step: int, steps: int, begin: int) -> float:
        """How far the updates before `step` went from update `begin` to the last one: 0 for the first after `begin`,
        below 1 for the last."""
        return min(1.0, max(0.0, (step - 1 - begin) / max(1, steps - begin)))


@configclass
class WarmupCosineConfig(ScheduleConfig):
    """Half a cosine down to min_ratio (Loshchilov and Hutter 2017; karpathy/nanoGPT, train.py, get_lr).

    min_ratio: what the learning rate falls to, as a fraction of the peak.
    """

    name: Literal["warmup_cosine"]
    min_ratio: Fraction = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * self.progress(step, steps, self.warmup(steps))))
        return self.min_ratio + (1 - self.min_ratio) * fall


@configclass
class WarmupLinearConfig(ScheduleConfig):
    """Straight down to min_ratio, from the end of the warm-up on.

    min_ratio: what the learning rate falls to, as a fraction of the peak.
    """

    name: Literal["warmup_linear"]
    min_ratio: Fraction = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        return self.min_ratio + (1 - self.min_ratio) * (1 - self.progress(step, steps, self.warmup(steps)))


@configclass
class WarmupPolynomialConfig(ScheduleConfig):
    """By (1 - progress) ** power down to min_ratio, where progress counts from the first update: after the warm-up the
    rate is at once below its peak (google-research/bert, optimization.py, whose file LAMB's authors used too).

    min_ratio: what the learning rate falls to, as a fraction of the peak.
    power: 1 is a straight line; BERT and LAMB have 1, down to 0.
    """

    name: Literal["warmup_polynomial"]
    min_ratio: Fraction = 0.0
    power: PositiveFloat = 1.0

    def after_warmup(self, step: int, steps: int) -> float:
        fall = (1 - self.progress(step, steps, 0)) ** self.power
        return self.min_ratio + (1 - self.min_ratio) * fall


@configclass
class InverseSqrtConfig(ScheduleConfig):
    """sqrt(warm-up / step) (Vaswani et al. 2017, section 5.3)."""

    name: Literal["inverse_sqrt"]

    def after_warmup(self, step: int, steps: int) -> float:
        return math.sqrt(max(1, self.warmup(steps)) / step)


@configclass
class ConstantConfig(ScheduleConfig):
    """Always the peak.

    warmup_fraction: share of train.steps over which the learning rate rises to its peak.
    """

    name: Literal["constant"]
    warmup_fraction: Annotated[Fraction, used_with("warmup_steps", None)] = 0.0

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


@configclass
class WarmupStableDecayConfig(ScheduleConfig):
    """Constant, then over the last updates linearly down to min_ratio. MiniCPM (Hu et al. 2024) named it; its own decay
    is exponential and takes a tenth of the steps.

    min_ratio: what the learning rate falls to, as a fraction of the peak.
    decay_fraction: share of all updates over which it falls, at the end.
    """

    name: Literal["warmup_stable_decay"]
    min_ratio: Fraction = 0.1
    decay_fraction: Fraction = 0.2

    def after_warmup(self, step: int, steps: int) -> float:
        begin = max(self.warmup(steps), steps - round(self.decay_fraction * steps))
        return self.min_ratio + (1 - self.min_ratio) * (1 - self.progress(step, steps, begin))


@dataclass(frozen=True)
class ScheduleEntry:
    """config: "module:Class" of the schedule."""

    config: str


SCHEDULES: dict[str, ScheduleEntry] = {
    "warmup_cosine": ScheduleEntry("pretraining.optim.schedules:WarmupCosineConfig"),
    "warmup_linear": ScheduleEntry("pretraining.optim.schedules:WarmupLinearConfig"),
    "warmup_polynomial": ScheduleEntry("pretraining.optim.schedules:WarmupPolynomialConfig"),
    "inverse_sqrt": ScheduleEntry("pretraining.optim.schedules:InverseSqrtConfig"),
    "constant": ScheduleEntry("pretraining.optim.schedules:ConstantConfig"),
    "warmup_stable_decay": ScheduleEntry("pretraining.optim.schedules:WarmupStableDecayConfig"),
}

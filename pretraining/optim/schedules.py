"""Learning-rate schedules: pure functions of the update's number. Each has a class with the keys that it uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_pipeline.common.fields import Fraction, NonNegative, PositiveFloat, configclass


@configclass
class ScheduleConfig:
    """The learning rate relative to its peak, at update 1, 2, ..., `steps`: a linear rise, then what a class adds.

    name: which schedule it is.
    warmup_steps: updates over which the learning rate rises linearly from 0 to its peak.
    """

    name: str
    warmup_steps: NonNegative = 100

    def ratio(self, step: int, steps: int) -> float:
        """The learning rate of update `step` (from 1) as a fraction of the peak."""
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        return self.after_warmup(step, steps)

    def after_warmup(self, step: int, steps: int) -> float:
        """The same for the updates behind the warm-up."""
        raise NotImplementedError

    def progress(self, step: int, steps: int, begin: int) -> float:
        """How far `step` is on the way from update `begin` to the last one, 0 to 1."""
        return min(1.0, max(0.0, (step - begin) / max(1, steps - begin)))


@configclass
class WarmupCosineConfig(ScheduleConfig):
    """Half a cosine down to min_ratio (Loshchilov and Hutter 2017).

    min_ratio: the last learning rate, as a fraction of the peak.
    """

    name: Literal["warmup_cosine"]
    min_ratio: Fraction = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * self.progress(step, steps, self.warmup_steps)))
        return self.min_ratio + (1 - self.min_ratio) * fall


@configclass
class WarmupLinearConfig(ScheduleConfig):
    """Straight down to min_ratio.

    min_ratio: the last learning rate, as a fraction of the peak.
    """

    name: Literal["warmup_linear"]
    min_ratio: Fraction = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        return self.min_ratio + (1 - self.min_ratio) * (1 - self.progress(step, steps, self.warmup_steps))


@configclass
class WarmupPolynomialConfig(ScheduleConfig):
    """By (1 - progress) ** power down to min_ratio (BERT's and LAMB's code).

    min_ratio: the last learning rate, as a fraction of the peak.
    power: 1 is a straight line; BERT and LAMB have 1, down to 0.
    """

    name: Literal["warmup_polynomial"]
    min_ratio: Fraction = 0.0
    power: PositiveFloat = 1.0

    def after_warmup(self, step: int, steps: int) -> float:
        fall = (1 - self.progress(step, steps, self.warmup_steps)) ** self.power
        return self.min_ratio + (1 - self.min_ratio) * fall


@configclass
class InverseSqrtConfig(ScheduleConfig):
    """sqrt(warmup_steps / step) (Vaswani et al. 2017, section 5.3)."""

    name: Literal["inverse_sqrt"]

    def after_warmup(self, step: int, steps: int) -> float:
        return math.sqrt(max(1, self.warmup_steps) / step)


@configclass
class ConstantConfig(ScheduleConfig):
    """Always the peak.

    warmup_steps: updates over which the learning rate rises linearly from 0 to its peak.
    """

    name: Literal["constant"]
    warmup_steps: NonNegative = 0

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


@configclass
class WarmupStableDecayConfig(ScheduleConfig):
    """Constant, then over the last updates linearly down to min_ratio (Hu et al. 2024, MiniCPM).

    min_ratio: the last learning rate, as a fraction of the peak.
    decay_fraction: share of all updates over which it falls, at the end.
    """

    name: Literal["warmup_stable_decay"]
    min_ratio: Fraction = 0.1
    decay_fraction: Fraction = 0.2

    def after_warmup(self, step: int, steps: int) -> float:
        begin = max(self.warmup_steps, steps - round(self.decay_fraction * steps))
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

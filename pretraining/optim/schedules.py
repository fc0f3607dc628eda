"""Learning-rate schedules: pure functions of the update's number."""

from __future__ import annotations

import math
from typing import Literal

from data_pipeline.common.fields import Fraction, NonNegative, PositiveFloat, configclass


@configclass
class ScheduleConfig:
    """The learning rate relative to its peak, at update 1, 2, ..., `steps`.

    All warm up linearly over `warmup_steps`, then:
    cosine: half a cosine down to min_ratio (Loshchilov and Hutter 2017); linear: straight down to min_ratio;
    polynomial: by (1 - progress) ** power down to min_ratio (BERT's and LAMB's code);
    inverse_sqrt: sqrt(warmup_steps / step) (Vaswani et al. 2017, section 5.3); constant;
    stable_decay: constant, then over the last `decay_fraction` of the steps linearly down (Hu et al. 2024, MiniCPM).
    """

    name: Literal[
        "warmup_cosine", "warmup_linear", "warmup_polynomial", "inverse_sqrt", "constant", "warmup_stable_decay"
    ]
    warmup_steps: NonNegative = 0
    min_ratio: Fraction = 0.0
    decay_fraction: Fraction = 0.2
    power: PositiveFloat = 1.0

    def ratio(self, step: int, steps: int) -> float:
        """The learning rate of update `step` (from 1) as a fraction of the peak."""
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        if self.name == "constant":
            return 1.0
        if self.name == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup_steps) / step)
        begin = self.warmup_steps
        if self.name == "warmup_stable_decay":
            begin = max(begin, steps - round(self.decay_fraction * steps))
        progress = min(1.0, max(0.0, (step - begin) / max(1, steps - begin)))
        return self.min_ratio + (1 - self.min_ratio) * self._fall(progress)

    def _fall(self, progress: float) -> float:
        if self.name == "warmup_cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.name == "warmup_polynomial":
            return (1 - progress) ** self.power
        return 1 - progress

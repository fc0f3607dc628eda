"""The learning rate of each schedule over a run of 20 steps, as a share of its peak."""

from __future__ import annotations

from tests.golden.inner import schedule_ratio

KIND = "schedules"
RELATIVE = 1e-9
CASES = {
    "constant": ("scheduler=constant",),
    "constant, warm-up": ("scheduler=constant", "scheduler.warmup_steps=4"),
    "inverse_sqrt": ("scheduler=inverse_sqrt", "scheduler.warmup_steps=4"),
    "warmup_cosine": ("scheduler=warmup_cosine",),
    "warmup_cosine, from half": ("scheduler=warmup_cosine", "scheduler.warmup_start=0.5"),
    "warmup_linear": ("scheduler=warmup_linear", "scheduler.warmup_steps=5"),
    "warmup_polynomial": ("scheduler=warmup_polynomial", "scheduler.power=0.5"),
    "warmup_stable_decay": ("scheduler=warmup_stable_decay",),
}
STEPS = 20


def compute(case: str) -> list[float]:
    return [round(schedule_ratio(CASES[case], step, STEPS), 12) for step in range(1, STEPS + 1)]

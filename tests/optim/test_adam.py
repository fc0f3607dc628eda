"""optimizer=adam: torch's Adam, and the schedule that came with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretraining.config import load_config
from pretraining.optim.config import AdamConfig
from pretraining.optim.registry import build_update_rule
from tests.optim.references import assert_same_steps, make, rising_and_falling, start, with_torch


def test_equals_torch_for_a_hundred_steps() -> None:
    config = AdamConfig(name="adam", lr=1e-2)
    rule, parameters = build_update_rule(config), [nn.Parameter(p) for p in start()]
    reference = torch.optim.Adam(parameters, betas=(0.9, 0.98), eps=1e-9)
    assert rule.weight_decay == 0.0
    assert_same_steps(make(rule, rule.weight_decay), rising_and_falling, with_torch(reference), parameters, 1e-6)


@pytest.mark.parametrize(("hidden", "warmup"), [(512, 4000), (1024, 4000), (64, 7)])
def test_its_schedule_is_the_papers_law(hidden: int, warmup: int) -> None:
    """lrate = d_model^-0.5 min(step^-0.5, step warmup_steps^-1.5), equation 3."""
    peak = (hidden * warmup) ** -0.5
    overrides = ["optimizer=adam", f"optimizer.lr={peak}", f"scheduler.warmup_steps={warmup}", "data.path=x"]
    config = load_config([*overrides, "train.steps=100000"])
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 100000):
        expected = hidden**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert config.optimizer.lr * config.scheduler.ratio(step, 100000) == pytest.approx(expected, rel=1e-12)
    assert AdamConfig(name="adam").lr == pytest.approx((512 * 4000) ** -0.5, rel=2e-3)

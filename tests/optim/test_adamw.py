from __future__ import annotations

import torch
from torch import nn

from pretraining.optim.config import AdamWConfig
from pretraining.optim.registry import build_update_rule
from tests.optim.references import (
    GROUPS,
    assert_same_steps,
    groups_of,
    make,
    make_groups,
    rising_and_falling,
    start,
    with_torch,
)


def test_equals_torch_for_a_hundred_steps() -> None:
    config = AdamWConfig(name="adamw", lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    parameters = [nn.Parameter(p) for p in start()]
    reference = torch.optim.AdamW(parameters, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    assert_same_steps(
        make(build_update_rule(config), config.weight_decay),
        rising_and_falling,
        with_torch(reference),
        parameters,
        1e-6,
    )


def test_each_group_has_its_own_decay_and_learning_rate() -> None:
    config = AdamWConfig(name="adamw", lr=1e-2, weight_decay=0.1)
    parameters = [nn.Parameter(p) for p in start()]
    reference = torch.optim.AdamW(groups_of(parameters), betas=config.betas, eps=config.eps)
    assert_same_steps(
        make_groups(build_update_rule(config), GROUPS),
        rising_and_falling,
        with_torch(reference),
        parameters,
        1e-6,
        steps=20,
    )

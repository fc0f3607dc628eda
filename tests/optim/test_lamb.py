from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretraining.optim import lamb
from pretraining.optim.base import Settings
from pretraining.optim.config import LambConfig
from pretraining.optim.registry import build_update_rule
from tests.optim.cases import differences, whole_run
from tests.optim.references import GROUPS, SHAPES, assert_same_steps, make, make_groups, rising_and_falling, start

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias_correction": False},
    {"trust_clip": (0.3, 2.0)},
    {"adapt_1d": True},
    {"decoupled_decay": True},
    {"betas": (0.0, 0.99), "bias_correction": False, "adapt_1d": True},
]


class Paper:
    """Algorithm 2 of You et al. 2019, line by line, in float64."""

    def __init__(self, config: LambConfig, groups: list[Settings]) -> None:
        self.config, self.groups, self.t = config, groups, 0
        self.m = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
        self.v = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]

    @torch.no_grad()
    def step(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.t += 1
        for i, x in enumerate(parameters):
            assert x.grad is not None
            decay, lr_scale, _ = self.groups[i % len(self.groups)]
            self._one(i, x, x.grad, lr * lr_scale, decay)

    def _one(self, i: int, x: Tensor, g: Tensor, lr: float, decay: float) -> None:
        config, (beta1, beta2) = self.config, self.config.betas
        self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
        self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
        m, v = self.m[i], self.v[i]
        if config.bias_correction:
            m, v = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
        update = m / (v.sqrt() + config.eps)
        if config.decoupled_decay:
            x -= lr * decay * x
        else:
            update = update + decay * x
        ratio = 1.0
        if x.ndim > 1 or config.adapt_1d:
            # the decoupled decay comes after the norm is taken
            norm = x.norm() / (1 - lr * decay if config.decoupled_decay else 1)
            ratio = float(norm / update.norm())
            if config.trust_clip:
                ratio = min(max(ratio, config.trust_clip[0]), config.trust_clip[1])
        x -= lr * ratio * update


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_papers_algorithm_for_a_hundred_steps(options: dict[str, Any]) -> None:
    config = LambConfig(name="lamb", lr=1e-2, weight_decay=0.1, **options)
    parameters = [nn.Parameter(p.double()) for p in start()]
    paper = Paper(config, [Settings(config.weight_decay)])
    assert_same_steps(
        make(build_update_rule(config), config.weight_decay), rising_and_falling, paper.step, parameters, 1e-5
    )


@pytest.mark.parametrize("options", [{}, {"adapt_1d": True, "decoupled_decay": True}], ids=str)
def test_each_group_has_its_own_decay_and_learning_rate(options: dict[str, Any]) -> None:
    config = LambConfig(name="lamb", lr=1e-2, weight_decay=0.1, **options)
    parameters = [nn.Parameter(p.double()) for p in start()]
    assert_same_steps(
        make_groups(build_update_rule(config), GROUPS),
        rising_and_falling,
        Paper(config, GROUPS).step,
        parameters,
        1e-5,
        steps=20,
    )


def test_a_tensor_of_zeros_or_an_update_of_zeros_has_trust_ratio_one() -> None:
    optimizer = make(build_update_rule(LambConfig(name="lamb", lr=1.0, weight_decay=0.0)), 0.0)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.shards[0].value.zero_()
    for shard in optimizer.shards:
        shard.grad = torch.zeros_like(shard.value)
    optimizer.shards[0].grad.fill_(3.0)
    before = [p.value.clone() for p in optimizer.shards]
    optimizer.step()
    assert torch.allclose(optimizer.shards[0].value, torch.tensor(-0.5))  # Adam's first step is the sign
    assert all(torch.equal(p.value, b) for p, b in zip(optimizer.shards[1:], before[1:], strict=True))


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_exempt_is_not_adapted_whatever_its_shape(adapted: bool) -> None:
    """T5's relative biases have two dimensions."""
    optimizer = make(build_update_rule(LambConfig(name="lamb", lr=1.0)), 0.0)
    optimizer.shards[0].settings = Settings(0.0, exempt=not adapted)
    optimizer.attach(optimizer.shards, optimizer.layout)
    optimizer.param_groups[0]["lr"] = 1.0
    for shard in optimizer.shards:
        shard.grad = torch.ones_like(shard.value)
    signed = optimizer.shards[0].value - 1.0  # Adam's first step
    optimizer.step()
    assert torch.allclose(optimizer.shards[0].value, signed, atol=1e-5) != adapted


def test_it_does_not_matter_how_the_work_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole_run("lamb", 5)
    monkeypatch.setattr(lamb, "CPU_CHUNK", 17)
    assert max(differences(whole_run("lamb", 5), expected).values()) < 1e-6


def test_a_reversed_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trust_clip=\[2\.0, 1\.0\]"):
        LambConfig(name="lamb", lr=1e-2, trust_clip=(2.0, 1.0))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_takes_no_part_in_the_loss_is_left_alone(options: dict[str, Any]) -> None:
    """A tensor with a gradient of zeros, among others; LAMB made 0.366 of it in 100 steps."""
    optimizer = make(build_update_rule(LambConfig(name="lamb", lr=1e-2, **options)), 0.01)
    before = optimizer.shards[2].value.clone()
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for number, shard in enumerate(optimizer.shards):
            shard.grad = torch.randn(shard.value.shape, generator=generator) * (number != 2)
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.step()
    assert before.ndim > 1 and torch.equal(optimizer.shards[2].value, before)
    assert all(shard.value.isfinite().all() for shard in optimizer.shards)

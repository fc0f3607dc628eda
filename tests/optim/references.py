"""Whole tensors beside a reference optimizer, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretraining.optim.base import Optimizer, ParameterShard, Settings, UpdateRule
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.layout import Layout, TensorLayout

SHAPES = [(13, 7), (11,), (3, 5, 4), (2, 3, 4, 5), (1,), (1, 1), (17, 1), (6, 33)]
GROUPS = [Settings(weight_decay=0.1, lr_scale=0.5), Settings(weight_decay=0.0)]  # tensors take turns


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(s, generator=generator) * 10.0 ** (i % 4 - 2) + 0.01 for i, s in enumerate(SHAPES)]


def make(rule: UpdateRule, weight_decay: float, **options: object) -> Optimizer:
    """Decay on all tensors, as torch and transformers apply it."""
    return make_groups(rule, [Settings(weight_decay)], **options)


def make_groups(rule: UpdateRule, groups: list[Settings], **options: object) -> Optimizer:
    """Tensors of one dimension are exempt, as biases and norms are."""
    shards = [
        ParameterShard(Fragment.whole(str(i), s), p, groups[i % len(groups)]._replace(exempt=len(s) < 2), i)
        for i, (s, p) in enumerate(zip(SHAPES, start(), strict=True))
    ]
    defaults = {"grad_clip": 0.0, "dynamic_loss_scale": False}
    optimizer = Optimizer([p.value for p in shards], rule, **(defaults | options))  # type: ignore[arg-type]
    optimizer.attach(shards, Layout(tuple(TensorLayout(str(i), shape) for i, shape in enumerate(SHAPES))))
    return optimizer


def assert_same_steps(
    optimizer: Optimizer,
    lr: Callable[[int], float],
    reference: Callable[[list[nn.Parameter], float], None],
    parameters: list[nn.Parameter],
    tolerance: float,
    steps: int = 100,
) -> None:
    """reference(parameters, lr) makes one step from their `grad`. Every step of every tensor is compared."""
    for step in range(steps):
        for shard, parameter, grad in zip(optimizer.shards, parameters, gradients(step), strict=True):
            shard.grad, parameter.grad = grad.clone(), grad.to(parameter.dtype)
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.step()
        reference(parameters, lr(step))
        for shard, parameter in zip(optimizer.shards, parameters, strict=True):
            gap = (shard.value - parameter.detach()).norm() / parameter.detach().norm()
            assert gap < tolerance, (step, shard.fragment.shape, float(gap))


def rising_and_falling(step: int) -> float:
    return 1e-2 * min(step + 1, 100 - step) / 50


def with_torch(optimizer: torch.optim.Optimizer) -> Callable[[list[nn.Parameter], float], None]:
    def step(_: list[nn.Parameter], lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()

    return step


def groups_of(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """GROUPS for a torch optimizer that with_torch steps."""
    return [{"params": parameters[n :: len(GROUPS)], **group._asdict()} for n, group in enumerate(GROUPS)]

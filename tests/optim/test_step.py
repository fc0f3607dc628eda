"""What every rule's step has in common: clipping, loss scale, skipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pretraining.optim.base import Optimizer
from pretraining.optim.registry import build_update_rule
from tests.optim.cases import BAD_STEP, CONFIGS, differences, gradients, run, whole_optimizer


def snapshot(optimizer: Optimizer) -> dict[str, Tensor]:
    state = {f.name: t.clone() for f, t in optimizer.state_tensors()}
    return state | {p.fragment.name: p.value.clone() for p in optimizer.shards}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_that_is_not_finite_changes_nothing_but_the_loss_scale(name: str, bad: float) -> None:
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]), dynamic_loss_scale=True)
    run(optimizer, 3)
    before = snapshot(optimizer)
    for shard, grad in zip(optimizer.shards, gradients(3).values(), strict=True):
        shard.grad = grad * optimizer.loss_scale
    optimizer.shards[1].grad[0] = bad
    optimizer.step()
    after = snapshot(optimizer)
    assert not optimizer.finite
    assert after.pop("optimizer.loss_scale") == 0.5 * before.pop("optimizer.loss_scale")
    assert (after.pop("optimizer.good_steps"), before.pop("optimizer.good_steps")) == (0, 3)
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_scale_leaves_the_update_as_it_is(name: str) -> None:
    plain, scaled = (whole_optimizer(build_update_rule(CONFIGS[name]), dynamic_loss_scale=d) for d in (False, True))
    for optimizer in (plain, scaled):
        run(optimizer, 12)  # a step that is skipped is among them
    found, expected = snapshot(scaled), snapshot(plain)
    assert found["optimizer.updates"] == expected["optimizer.updates"] == 11
    for values in (found, expected):
        del values["optimizer.loss_scale"], values["optimizer.good_steps"]
    assert max(differences(found, expected).values()) < 1e-6


def test_a_run_can_change_to_fp16_and_back() -> None:
    plain, scaled = (whole_optimizer(build_update_rule(CONFIGS["adamw"]), dynamic_loss_scale=d) for d in (False, True))
    saved = {fragment.name: tensor for fragment, tensor in plain.state_tensors()}
    for fragment, tensor in scaled.state_tensors():
        tensor.copy_(saved[fragment.name])
    assert (plain.loss_scale, scaled.loss_scale) == (1.0, 2.0**16)
    for fragment, tensor in plain.state_tensors():
        tensor.copy_(dict((f.name, t) for f, t in scaled.state_tensors())[fragment.name])
    assert plain.loss_scale == 1.0


def test_the_loss_scale_doubles_after_enough_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "GROWTH_INTERVAL", 3)
    optimizer = whole_optimizer(build_update_rule(CONFIGS["adamw"]), dynamic_loss_scale=True)
    run(optimizer, 3)
    assert (optimizer.loss_scale, optimizer.good_steps) == (2.0**17, 0)


@pytest.mark.parametrize("clip", [0.1, 1.0, 1e4])
def test_clipping_is_torchs(clip: float) -> None:
    clipped = whole_optimizer(build_update_rule(CONFIGS["adamw"]), grad_clip=clip)
    unclipped = whole_optimizer(build_update_rule(CONFIGS["adamw"]), grad_clip=0.0)
    for step in range(BAD_STEP):
        parameters = [nn.Parameter(torch.zeros_like(p.value)) for p in clipped.shards]
        for parameter, grad in zip(parameters, gradients(step).values(), strict=True):
            parameter.grad = grad.clone()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for ours, plain, parameter, grad in zip(
            clipped.shards, unclipped.shards, parameters, gradients(step).values(), strict=True
        ):
            assert parameter.grad is not None
            ours.grad, plain.grad = grad, parameter.grad
        clipped.step()
        unclipped.step()
        assert torch.allclose(clipped.grad_norm, norm, rtol=1e-6)
    assert max(differences(snapshot(clipped), snapshot(unclipped)).values()) < 1e-6

"""A step that is not finite leaves weights and optimizer state as they were, bit for bit, whenever it comes."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from pretraining.optim.base import Optimizer, UpdateRule
from pretraining.optim.config import AdafactorConfig, AdamWConfig, LambConfig
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.layout import Layout, TensorLayout
from tests.optim.cases import SHAPES, gradients, make_optimizer

BADNESS = [math.nan, math.inf, -math.inf, 1e30, "all nan", "all inf"]  # 1e30: its square overflows
STEPS = 5
OWN_NUMBERS = ("optimizer.loss_scale", "optimizer.good_steps")  # what a skipped step does change

fractions = st.sampled_from([0.0, 0.9, 0.99])
CONFIGS: dict[str, st.SearchStrategy[Any]] = {
    "adamw": st.builds(
        AdamWConfig,
        name=st.just("adamw"),
        betas=st.tuples(fractions, fractions),
        weight_decay=st.sampled_from([0, 0.1]),
    ),
    "lamb": st.builds(
        LambConfig,
        name=st.just("lamb"),
        betas=st.tuples(fractions, fractions),
        weight_decay=st.just(0.1),
        bias_correction=st.booleans(),
        trust_clip=st.sampled_from([None, (0.5, 1.5)]),
        adapt_1d=st.booleans(),
        decoupled_decay=st.booleans(),
    )
    | st.builds(LambConfig, name=st.just("lamb"), weight_decay=st.just(0.0), bias_correction=st.booleans()),
    "adafactor": st.builds(
        AdafactorConfig,
        name=st.just("adafactor"),
        beta1=st.sampled_from([None, 0.0, 0.9]),
        weight_decay=st.sampled_from([0.0, 0.1]),
        scale_parameter=st.booleans(),
        relative_step=st.just(True),
        warmup_init=st.booleans(),
        clip_threshold=st.sampled_from([0.3, 1.0]),
    )
    | st.builds(AdafactorConfig, name=st.just("adafactor"), relative_step=st.just(False), beta1=st.none()),
}


def fragments(flat: bool) -> list[Fragment]:
    """Of whole tensors, or ranges of their elements as ZeRO cuts them; none of the layouts reduces here."""
    whole = [Fragment.whole(name, shape) for name, shape in SHAPES.items()]
    if not flat:
        return whole
    return [Fragment(f.name, f.shape, f.box, f.stop // 3, f.stop) for f in whole if f.stop // 3 < f.stop]


def optimizer_of(rule: UpdateRule, flat: bool, fp16: bool) -> Optimizer:
    layout = Layout(tuple(TensorLayout(*item) for item in SHAPES.items()))
    optimizer = make_optimizer(rule, fragments(flat), layout, dynamic_loss_scale=fp16)
    for shard in optimizer.shards:
        shard.value.view(-1)[::5] = 0.0
        shard.value.view(-1)[::7] = -0.0  # adding 0.0 to it would change its sign
    return optimizer


def bits(optimizer: Optimizer) -> dict[str, Tensor]:
    """Every bit that must stay: -0.0 and 0.0 differ, a NaN equals itself."""
    found = {f.name: t for f, t in optimizer.state_tensors() if f.name not in OWN_NUMBERS}
    found |= {p.fragment.name: p.value for p in optimizer.shards}
    return {name: t.clone().view(torch.int32) for name, t in found.items()}


def step(optimizer: Optimizer, number: int, bad: float | str | None, place: int) -> None:
    grads = gradients(number)
    for shard in optimizer.shards:
        whole = grads[shard.fragment.name].reshape(-1)
        shard.grad = (whole[-shard.value.numel() :].view(shard.value.shape) * optimizer.loss_scale).contiguous()
    where = optimizer.shards[place % len(optimizer.shards)].grad.view(-1)
    if isinstance(bad, str):
        where.fill_(float(bad.removeprefix("all ")))
    elif bad is not None:
        where[place % where.numel()] = bad
    optimizer.step()


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_bad_steps_leave_every_bit(name: str, data: st.DataObject) -> None:
    """Positions, places and kinds of bad steps are drawn, the first among them; in the end it is as if there had been
    good ones alone."""
    config = data.draw(CONFIGS[name])
    flat, fp16 = data.draw(st.booleans()), data.draw(st.booleans())
    bad_steps = data.draw(st.lists(st.sampled_from([None, *BADNESS]), min_size=STEPS, max_size=STEPS))
    found, expected = (optimizer_of(build_update_rule(config), flat, fp16) for _ in range(2))
    for number, bad in enumerate(bad_steps):
        before = bits(found)
        step(found, number, bad, data.draw(st.integers(0, 1000)) if bad is not None else 0)
        assert bool(found.finite) == (bad is None)
        if bad is None:
            step(expected, number, None, 0)
        else:
            after = bits(found)
            assert [n for n in before if not torch.equal(before[n], after[n])] == []
    assert all(torch.equal(bits(expected)[n], t) for n, t in bits(found).items())
    assert all(p.value.isfinite().all() for p in found.shards)


def test_the_loss_scale_of_fp16_has_a_floor() -> None:
    """Below 1 it would take small gradients to zero for good, while the loss looks healthy."""
    optimizer = optimizer_of(build_update_rule(AdamWConfig(name="adamw")), False, True)
    for number in range(40):
        step(optimizer, number, math.inf, 0)
    assert float(optimizer.loss_scale) == 1.0

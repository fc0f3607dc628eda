from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pretraining.optim import adafactor
from pretraining.optim.config import AdafactorConfig
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.fragments import Fragment
from tests.optim.cases import differences, whole_run
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

RELATIVE: list[dict[str, Any]] = [
    {},
    {"scale_parameter": False},
    {"warmup_init": True},
    {"beta1": 0.9, "weight_decay": 0.1},
    {"clip_threshold": 0.3, "decay_rate": -0.5, "eps": (1e-10, 0.5)},
]


@pytest.mark.parametrize("options", RELATIVE, ids=str)
def test_equals_transformers_with_relative_steps(options: dict[str, Any]) -> None:
    from transformers.optimization import Adafactor

    config = AdafactorConfig(name="adafactor", lr=1e-2, **options)
    parameters = [nn.Parameter(p) for p in start()]
    reference = Adafactor(parameters, relative_step=True, **options)
    assert_same_steps(
        make(build_update_rule(config), config.weight_decay),
        lambda _: 1e-2,
        lambda *_: reference.step(),
        parameters,
        2e-6,
    )


@pytest.mark.parametrize("scale_parameter", [True, False])
def test_equals_transformers_with_a_schedule(scale_parameter: bool) -> None:
    from transformers.optimization import Adafactor

    config = AdafactorConfig(
        name="adafactor", lr=1e-2, relative_step=False, scale_parameter=scale_parameter, beta1=0.5, weight_decay=0.01
    )
    parameters = [nn.Parameter(p) for p in start()]
    reference = Adafactor(
        parameters, lr=1e-2, relative_step=False, scale_parameter=scale_parameter, beta1=0.5, weight_decay=0.01
    )
    assert_same_steps(
        make(build_update_rule(config), config.weight_decay),
        rising_and_falling,
        with_torch(reference),
        parameters,
        2e-6,
    )


@pytest.mark.parametrize("options", [{}, {"scale_parameter": False, "beta1": 0.9}], ids=str)
def test_each_group_has_its_own_decay_and_learning_rate(options: dict[str, Any]) -> None:
    from transformers.optimization import Adafactor

    config = AdafactorConfig(name="adafactor", lr=1e-2, relative_step=False, weight_decay=0.1, **options)
    parameters = [nn.Parameter(p) for p in start()]
    reference = Adafactor(groups_of(parameters), lr=1e-2, relative_step=False, **options)
    assert_same_steps(
        make_groups(build_update_rule(config), GROUPS),
        rising_and_falling,
        with_torch(reference),
        parameters,
        2e-6,
        steps=20,
    )


@pytest.mark.parametrize("lr", [1e-2, 0.2])
def test_equals_torch_where_torch_follows_the_paper(lr: float) -> None:
    """torch's eps is a floor of the second moment, out of the way here; at lr=0.2 1 / sqrt(step) takes over."""
    config = AdafactorConfig(name="adafactor", lr=lr)
    parameters = [nn.Parameter(p) for p in start()]
    reference = torch.optim.Adafactor(parameters, lr=lr, eps=(1e-15, 1e-3))
    assert_same_steps(make(build_update_rule(config), 0.0), lambda _: lr, with_torch(reference), parameters, 5e-6)


def test_state_is_sublinear() -> None:
    optimizer = make(build_update_rule(AdafactorConfig(name="adafactor", lr=1e-2)), 0.0)
    by_shape = {p.fragment.shape: {n: tuple(t.shape) for n, t in p.state.items()} for p in optimizer.shards}
    assert by_shape[(6, 33)] == {"exp_avg_sq_row": (6,), "exp_avg_sq_col": (33,)}
    assert by_shape[(2, 3, 4, 5)] == {"exp_avg_sq_row": (2, 3, 4), "exp_avg_sq_col": (2, 3, 5)}
    assert by_shape[(11,)] == {"exp_avg_sq": (11,)}


def test_a_statistic_that_has_the_shape_of_its_fragment_is_still_whole() -> None:
    optimizer = make(build_update_rule(AdafactorConfig(name="adafactor", lr=1e-2)), 0.0)
    shard = optimizer.shards[0]
    shard.fragment = Fragment("0", (13, 7), shard.fragment.box, 0, 13)
    shard.value = torch.zeros(13)
    fragments = {f.name: f for f, _ in optimizer.state_tensors()}
    assert fragments["optimizer.exp_avg_sq_row.0"] == Fragment.whole("optimizer.exp_avg_sq_row.0", (13,))


def test_it_does_not_matter_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole_run("adafactor", 5)
    monkeypatch.setattr(adafactor, "CPU_PATCH", 17)
    assert max(differences(whole_run("adafactor", 5), expected).values()) < 1e-6


def test_warmup_init_needs_relative_steps() -> None:
    with pytest.raises(ValueError, match="relative_step=true"):
        AdafactorConfig(name="adafactor", lr=1e-2, relative_step=False, warmup_init=True)

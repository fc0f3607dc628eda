from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretraining.models.vocabulary import padded_vocabulary
from pretraining.optim import adafactor
from pretraining.optim.base import Optimizer, ParameterShard, Settings
from pretraining.optim.config import AdafactorConfig
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.launch import Launch
from pretraining.parallel.layout import Layout, TensorLayout
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.world import World, start_world
from tests.helpers import run_world
from tests.optim.cases import differences, gather, take, whole_run
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


PUBLISHED, PADDED = {"table": (11, 5), "bias": (11,), "other": (4, 3)}, {"table": 14, "bias": 14}
PADDING_CONFIGS: list[dict[str, Any]] = [
    {},
    {"clip_threshold": 0.3},
    {"beta1": 0.9, "weight_decay": 0.1},
    {"scale_parameter": False, "relative_step": False, "eps": (1e-10, 1e-3)},
]


def padded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    rows = PADDED.get(name, len(tensor))
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def draw(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in PUBLISHED.items()}


def train_tables(
    options: dict[str, Any], layout: Layout, fragments: list[Fragment], fill: Callable[[str, torch.Tensor], Any]
) -> list[tuple[Fragment, torch.Tensor]]:
    """Ten steps on these fragments of tensors that `fill` makes of those without padding -> fragments and values."""
    config = AdafactorConfig(name="adafactor", lr=1e-2, **options)
    names = [tensor.name for tensor in layout.tensors]

    def part(whole: torch.Tensor, fragment: Fragment) -> torch.Tensor:
        return take(fill(fragment.name, whole), fragment)

    start_values = draw(0)
    shards = [
        ParameterShard(f, part(start_values[f.name], f).clone(), Settings(config.weight_decay), names.index(f.name))
        for f in fragments
    ]
    optimizer = Optimizer([torch.zeros(1)], build_update_rule(config), grad_clip=1.0, dynamic_loss_scale=False)
    optimizer.attach(shards, layout)
    optimizer.param_groups[0]["lr"] = 1e-2
    for step in range(10):
        grads = draw(1 + step)
        for shard in shards:
            shard.grad = part(grads[shard.fragment.name], shard.fragment).clone()
        optimizer.step()
    return [(shard.fragment, shard.value) for shard in shards]


def unpadded(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    layout = Layout(tuple(TensorLayout(*item) for item in PUBLISHED.items()))
    fragments = [Fragment.whole(*item) for item in PUBLISHED.items()]
    return {f.name: value for f, value in train_tables(options, layout, fragments, lambda _, tensor: tensor)}


def padded_layout(split_over: frozenset[Axis], mesh: Mesh) -> Layout:
    return Layout(
        tuple(
            TensorLayout(name, tuple(padded(name, t).shape), split_over, PADDED.get(name, len(t)) - len(t))
            for name, t in draw(0).items()
        ),
        mesh,
    )


def require_unpadded(found: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    for name, expected in unpadded(options).items():
        assert (found[name][: len(expected)] - expected).norm() <= 1e-6 * expected.norm(), name
        assert not found[name][len(expected) :].any()


@pytest.mark.parametrize("options", PADDING_CONFIGS, ids=str)
def test_padded_rows_change_nothing(options: dict[str, Any]) -> None:
    layout = padded_layout(frozenset(), Mesh())
    fragments = [Fragment.whole(tensor.name, tensor.shape) for tensor in layout.tensors]
    require_unpadded({f.name: v for f, v in train_tables(options, layout, fragments, padded)}, options)


def train_padded_shards(world: World, options: dict[str, Any], flat: bool) -> dict[str, torch.Tensor]:
    """Each tensor in equal flat ranges, as ZeRO deals them, or in equal rows, as tensor parallelism does: a rank may
    hold padding alone."""
    axis = Axis.DATA if flat else Axis.TENSOR
    mesh = Mesh(sizes={axis: world.size}, groups={frozenset({axis}): dist.group.WORLD})
    fragments = []
    layout = padded_layout(frozenset({axis}), mesh)
    for tensor in layout.tensors:
        whole = Fragment.whole(tensor.name, tensor.shape)
        if flat:
            share = -(-whole.stop // world.size)
            fragments.append(replace(whole, start=world.rank * share, stop=min(whole.stop, (world.rank + 1) * share)))
        else:
            rows = tensor.shape[0] // world.size
            offset = (world.rank * rows, *(0,) * (len(tensor.shape) - 1))
            box = Box(offset, (rows, *tensor.shape[1:]))
            fragments.append(Fragment(tensor.name, tensor.shape, box, 0, box.numel))
    return gather(train_tables(options, layout, fragments, padded))


@pytest.mark.parametrize("flat", [True, False])
def test_padded_rows_change_nothing_however_tensors_are_cut(flat: bool) -> None:
    for found in run_world(2, train_padded_shards, PADDING_CONFIGS[2], flat):
        require_unpadded(found, PADDING_CONFIGS[2])


def test_engines_say_which_rows_are_padded(corpus: Path, tmp_path: Path) -> None:
    from tests.engines.test_engines import trainer_of

    for model, objective, heads in (
        ("gpt_debug", "causal_lm", ["token_embedding.weight"]),
        ("bert_debug", "masked_lm", ["head.decoder.bias", "token_embedding.weight"]),
        ("t5_debug", "span_corruption", ["token_embedding.weight"]),
    ):
        overrides = (f"model={model}", f"objective={objective}", f"data.path={corpus}", f"run_dir={tmp_path / model}")
        more = ("optimizer=adafactor", "tracking.wandb=disabled", "train.global_batch_size=2")
        trainer = trainer_of(start_world(Launch()), *overrides, *more, "train.micro_batch_size=2")
        tensors = trainer.engine.optimizer.layout.tensors
        rows = {tensor.name: tensor.padded_rows for tensor in tensors if tensor.padded_rows}
        padding = padded_vocabulary(trainer.engine.module.model.vocab_size) - trainer.engine.module.model.vocab_size
        assert padding and {name: padding for name in heads}.items() <= rows.items()
        assert set(rows) - set(heads) <= {"head.weight"}

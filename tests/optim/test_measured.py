"""Norms of gradient, update and weights of each tensor, whole and sharded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretraining.optim.registry import build_update_rule
from pretraining.parallel.world import World
from tests.helpers import run_world
from tests.optim.cases import CONFIGS, SHAPES, Grid, cut, gradients, make_optimizer, run, whole_optimizer


def measured(name: str) -> Tensor:
    """Of the third step of the whole tensors."""
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]), grad_clip=0.0)
    run(optimizer, 2)
    optimizer.measures = True
    run(optimizer, 1)
    assert optimizer.measured is not None
    return optimizer.measured


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_those_of_what_was_done(name: str) -> None:
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]))
    run(optimizer, 2)
    before = {p.fragment.name: p.value.clone() for p in optimizer.shards}
    optimizer.measures = True
    run(optimizer, 1)
    assert optimizer.measured is not None
    for shard, row in zip(optimizer.shards, optimizer.measured, strict=True):
        gradient = gradients(0)[shard.fragment.name]
        expected = [gradient.norm(), (shard.value - before[shard.fragment.name]).norm(), shard.value.norm()]
        assert torch.allclose(row[:3], torch.stack(expected), rtol=1e-5)
    assert (optimizer.measured[:, 3:] > 0).all() and optimizer.measured.shape[1] == 3 + len(optimizer.rule.factor_names)


def test_the_trust_ratio_is_what_the_update_was_multiplied_by() -> None:
    """Without bias correction's and moments' history: the update is lr x ratio x r, whatever r is."""
    (ratios,) = (measured(name)[:, 3] for name in CONFIGS if name == "lamb")
    exempt = torch.tensor([len(shape) < 2 for shape in SHAPES.values()])
    assert torch.equal(ratios[exempt], torch.ones(int(exempt.sum()))) and not torch.allclose(
        ratios[~exempt], torch.ones(1)
    )


def of_a_rank(world: World, grid: Grid) -> dict[str, Tensor]:
    layout, fragments = cut(grid)
    found = {}
    for name, config in CONFIGS.items():
        optimizer = make_optimizer(build_update_rule(config), fragments, layout, grad_clip=0.0)
        run(optimizer, 2)
        optimizer.measures = True
        run(optimizer, 1)
        assert optimizer.measured is not None
        found[name] = optimizer.measured
    return found


@pytest.mark.parametrize("grid", [Grid(3), Grid(1, 2), Grid(2, 2)], ids=str)
def test_they_are_the_same_however_tensors_are_sharded(grid: Grid) -> None:
    for found in run_world(grid.data * grid.tensor, of_a_rank, grid):
        for name, rows in found.items():
            assert torch.allclose(rows, measured(name), rtol=1e-4, atol=1e-7), name

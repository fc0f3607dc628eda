"""The same update however tensors are cut: real gloo ranks against one process."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pretraining.optim.registry import build_update_rule
from pretraining.parallel.world import World
from tests.helpers import run_world
from tests.optim.cases import CONFIGS, Grid, cut, differences, make_optimizer, run, sharded_runs, whole_run

STEPS = 20
REPLICATED = "blocks.0.norm.weight"  # not split by tensor parallelism
GRIDS = [Grid(2), Grid(3), Grid(5), Grid(3, flat=False), Grid(1, 2), Grid(2, 2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_cut_tensors_get_the_update_of_whole_ones(name: str, grid: Grid) -> None:
    found, expected = sharded_runs(grid, STEPS)[name], whole_run(name, STEPS)
    worst = differences(found, expected)
    assert found.keys() == expected.keys()
    assert max(worst.values()) < 1e-6, worst


@pytest.mark.parametrize("grid", [Grid(3), Grid(1, 2)], ids=str)
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("adam", "adamw")])
def test_the_comparison_catches_an_optimizer_with_local_statistics(name: str, grid: Grid) -> None:
    worst = differences(sharded_runs(grid, STEPS, local=True)[name], whole_run(name, STEPS))
    assert max(worst.values()) > 1e-3, worst


def bad_steps_of_one_rank(world: World, grid: Grid) -> dict[str, list[tuple[bool, Tensor]]]:
    """Of each optimizer: whether steps 0 to 3 were finite, and all weights and state behind each. A gradient that all
    tensor ranks should hold alike is not finite at steps 0 and 2, on the last rank alone."""
    layout, fragments = cut(grid)
    found = {}
    for name, config in CONFIGS.items():
        optimizer = make_optimizer(build_update_rule(config), fragments, layout)
        read, steps = optimizer.step, []

        def step(optimizer=optimizer, read=read, steps=steps) -> None:  # type: ignore[no-untyped-def]
            if len(steps) in (0, 2) and world.rank == world.size - 1:
                next(s for s in optimizer.shards if s.fragment.name == REPLICATED).grad.view(-1)[0] = math.nan
            read()
            tensors = [p.value for p in optimizer.shards] + [t for _, t in optimizer.state_tensors()]
            steps.append((bool(optimizer.finite), torch.cat([t.reshape(-1) for t in tensors])))

        optimizer.step = step  # type: ignore[method-assign]
        run(optimizer, 4)
        found[name] = steps
    return found


@pytest.mark.parametrize("grid", [Grid(1, 2), Grid(2, 2, flat=False), Grid(3, flat=False)], ids=str)
def test_one_rank_with_a_bad_gradient_skips_for_all(grid: Grid) -> None:
    """The first step among them; nothing is touched then."""
    for rank in run_world(grid.data * grid.tensor, bad_steps_of_one_rank, grid):
        for name, steps in rank.items():
            assert [finite for finite, _ in steps] == [False, True, False, True], name
            assert torch.equal(steps[1][1], steps[2][1]) and not torch.equal(steps[0][1], steps[1][1]), name
            assert steps[0][1].isfinite().all() and steps[3][1].isfinite().all(), name

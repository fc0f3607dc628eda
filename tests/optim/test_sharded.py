"""The same update however tensors are cut: real gloo ranks against one process."""

from __future__ import annotations

import pytest

from tests.optim.cases import CONFIGS, Grid, differences, sharded_runs, whole_run

STEPS = 20
GRIDS = [Grid(2), Grid(3), Grid(5), Grid(3, flat=False), Grid(1, 2), Grid(2, 2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_cut_tensors_get_the_update_of_whole_ones(name: str, grid: Grid) -> None:
    found, expected = sharded_runs(grid, STEPS)[name], whole_run(name, STEPS)
    worst = differences(found, expected)
    assert found.keys() == expected.keys()
    assert max(worst.values()) < 1e-6, worst


@pytest.mark.parametrize("grid", [Grid(3), Grid(1, 2)], ids=str)
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "adamw"])
def test_the_comparison_catches_an_optimizer_with_local_statistics(name: str, grid: Grid) -> None:
    worst = differences(sharded_runs(grid, STEPS, local=True)[name], whole_run(name, STEPS))
    assert max(worst.values()) > 1e-3, worst

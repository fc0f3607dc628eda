"""What takes no part in the loss is left alone, bit for bit and from the first update on, however it is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretraining.build import build, read_inputs
from pretraining.config import load_config
from pretraining.optim.adamw import AdamW
from pretraining.optim.base import Optimizer
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.world import World
from pretraining.run.signals import StopRequest
from tests.helpers import TINY, run_world
from tests.optim.cases import (
    CONFIGS,
    Grid,
    cut,
    differences,
    gather,
    gradients,
    make_optimizer,
    take,
    values,
    whole_optimizer,
)

STEPS = 10
UNTRAINED = ("blocks.0.up.weight", "blocks.1.out.weight", "blocks.1.gate")
LATE, BEGINS = "blocks.1.convolution", 4  # it has a gradient from this step on
PARTLY = "token_embedding.weight"  # its gradient is in its last row alone
ENGINES = {
    "ddp": ("engine=torch",),
    "shard_optimizer": ("engine=torch", "engine.shard_optimizer=true"),
    **{f"zero{stage}": ("engine=deepspeed", f"engine.zero_stage={stage}") for stage in (1, 2, 3)},
}


def train(optimizer: Optimizer, steps: range) -> None:
    """One of the steps is not finite."""
    for step in steps:
        grads = gradients(step)
        for name in (*UNTRAINED, *((LATE,) if step < BEGINS else ())):
            grads[name].zero_()
        grads[PARTLY][:-1] = 0
        for shard in optimizer.shards:
            shard.grad = take(grads[shard.fragment.name], shard.fragment)
        optimizer.step()


def step_without_gradients(optimizer: Optimizer) -> None:
    for shard in optimizer.shards:
        shard.grad = torch.zeros_like(shard.value)
    optimizer.step()


def weights(optimizer: Optimizer) -> dict[str, Tensor]:
    return {p.fragment.name: p.value.clone() for p in optimizer.shards}


def expected(name: str) -> dict[str, Tensor]:
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]))
    train(optimizer, range(STEPS))
    return weights(optimizer)


def require_untouched(found: dict[str, Tensor], names: tuple[str, ...] = UNTRAINED) -> None:
    begun = values()
    assert [name for name in found if torch.equal(found[name], begun[name])] == [n for n in begun if n in names]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tensor_without_a_gradient_stays_as_it_is(name: str) -> None:
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]))
    train(optimizer, range(BEGINS))
    require_untouched(weights(optimizer), (*UNTRAINED, LATE))
    train(optimizer, range(BEGINS, STEPS))
    require_untouched(weights(optimizer))


def cut_runs(world: World, grid: Grid) -> dict[str, dict[str, Tensor]]:
    layout, fragments = cut(grid)
    found = {}
    for name, config in CONFIGS.items():
        optimizer = make_optimizer(build_update_rule(config), fragments, layout)
        train(optimizer, range(STEPS))
        found[name] = gather([(p.fragment, p.value) for p in optimizer.shards])
    return found


@pytest.mark.parametrize("grid", [Grid(2), Grid(2, flat=False), Grid(2, 2)], ids=str)
def test_it_is_decided_over_the_whole_tensor(grid: Grid) -> None:
    """Of PARTLY, a rank has no gradient, and its part is decayed all the same."""
    (found, *_) = run_world(grid.data * grid.tensor, cut_runs, grid)
    for name in CONFIGS:
        require_untouched(found[name])
        worst = differences(found[name], expected(name))
        assert max(worst.values()) < 1e-6, (name, worst)


def test_adamw_decays_what_had_a_gradient_once() -> None:
    optimizer = whole_optimizer(build_update_rule(CONFIGS["adamw"]))
    train(optimizer, range(3))
    before = weights(optimizer)
    step_without_gradients(optimizer)
    decayed = next(p for p in optimizer.shards if p.fragment.name == PARTLY)
    assert not torch.equal(decayed.value[0], before[PARTLY][0])  # a row that has no momentum


@pytest.mark.parametrize("half", [2, BEGINS, 7])
def test_adamw_goes_on_after_a_load_bit_for_bit(half: int) -> None:
    whole = whole_optimizer(build_update_rule(CONFIGS["adamw"]))
    train(whole, range(half))
    resumed = whole_optimizer(build_update_rule(CONFIGS["adamw"]))
    for (_, target), (_, source) in zip(resumed.state_tensors(), whole.state_tensors(), strict=True):
        target.copy_(source)
    for mine, other in zip(resumed.shards, whole.shards, strict=True):
        mine.value.copy_(other.value)
    resumed.after_load()
    for optimizer in (whole, resumed):
        step_without_gradients(optimizer)
        train(optimizer, range(half, STEPS))
    found = weights(resumed)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(whole).items())
    require_untouched(found)


def test_the_host_asks_ever_more_seldom() -> None:
    """It waits for the device then."""
    rule = build_update_rule(CONFIGS["adamw"])
    assert isinstance(rule, AdamW)
    optimizer, seen = whole_optimizer(rule), []
    for step in range(9):
        train(optimizer, range(step, step + 1))
        seen.append(len(rule.waiting))
    # UNTRAINED and LATE that are decayed; LATE trains at the fifth call, and is asked about at the eighth
    assert seen == [3, 3, 3, 3, 3, 3, 3, 2, 2]


def without(world: World, corpus: Path, folder: Path) -> None:
    """Two starts of each engine, whose optimizer sees no gradient of the positions' embedding."""
    for name, layout in ENGINES.items():
        for optimizer, eps in (("adamw", "1e-6"), ("lamb", "1e-6"), ("adafactor", "[1e-30,1e-3]")):
            for steps in (5, STEPS):
                config = load_config(
                    [
                        *TINY,
                        *layout,
                        f"data.path={corpus}",
                        f"run_dir={folder / name / optimizer}",
                        f"train.steps={steps}",
                        f"optimizer={optimizer}",
                        f"optimizer.eps={eps}",
                        "optimizer.weight_decay=0.1",
                    ],
                    world.size,
                )
                trainer = build(config, read_inputs(config), world, Path(str(config.run_dir)), StopRequest())
                require_left_alone(trainer.engine.optimizer, trainer.fit)


def require_left_alone(optimizer: Optimizer, fit) -> None:  # type: ignore[no-untyped-def]
    mine = [p for p in optimizer.shards if p.fragment.name == "position_embedding.weight"]
    before = [p.value.clone() for p in mine]
    read = optimizer.read_gradients

    def read_none() -> None:
        read()
        for shard in mine:
            shard.grad.zero_()

    optimizer.read_gradients = read_none
    fit()
    assert all(torch.equal(p.value, old) for p, old in zip(mine, before, strict=True))


def test_every_engine_leaves_it_alone_and_so_does_a_resumed_run(corpus: Path, tmp_path: Path) -> None:
    run_world(2, without, corpus, tmp_path)

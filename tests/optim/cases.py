"""Tensors of uneven shapes, their gradients, and the same optimizer steps on them whole or cut over ranks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.optim.base import Optimizer, ParameterShard, Settings, Step, UpdateRule
from pretraining.optim.config import AdafactorConfig, AdamConfig, AdamWConfig, LambConfig
from pretraining.optim.registry import build_update_rule
from pretraining.parallel.fragments import Box, Fragment
from pretraining.parallel.layout import Layout, TensorLayout
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.world import World
from tests.helpers import run_world

# Name -> shape and the dimension that tensor parallelism splits.
SPLIT = {
    "token_embedding.weight": ((14, 5), 0),
    "blocks.0.up.weight": ((8, 7), 0),
    "blocks.0.up.bias": ((8,), 0),
    "blocks.0.down.weight": ((7, 8), 1),
    "blocks.0.experts": ((3, 4, 6), 1),
}
SHAPES = {name: shape for name, (shape, _) in SPLIT.items()} | {
    "blocks.0.norm.weight": (7,),
    "blocks.1.convolution": (4, 3, 2, 5),
    "blocks.1.gate": (1,),
    "blocks.1.out.weight": (11, 3),
    "head.bias": (13,),
}

LAYERS_ABOVE = {"token_embedding": 3, "blocks.0": 2, "blocks.1": 1, "head": 0}  # by the name's beginning

CONFIGS: dict[str, AdamConfig | AdamWConfig | LambConfig | AdafactorConfig] = {
    "adam": AdamConfig(name="adam", lr=1e-2, layer_decay=0.8),
    "adamw": AdamWConfig(name="adamw", lr=1e-2, layer_decay=0.8),
    "lamb": LambConfig(name="lamb", lr=1e-2, layer_decay=0.8),
    "lamb_options": LambConfig(
        name="lamb", lr=1e-2, bias_correction=False, trust_clip=(0.5, 1.5), adapt_1d=True, decoupled_decay=True
    ),
    "adafactor": AdafactorConfig(name="adafactor", lr=1e-2, layer_decay=0.8),
    "adafactor_options": AdafactorConfig(
        name="adafactor",
        lr=1e-2,
        beta1=0.9,
        weight_decay=0.1,
        scale_parameter=False,
        relative_step=False,
        clip_threshold=0.5,
    ),
}
BAD_STEP = 7


class Grid(NamedTuple):
    """data x tensor ranks; flat: ranks share one range over all tensors (ZeRO-1, 2), else one of each (ZeRO-3)."""

    data: int
    tensor: int = 1
    flat: bool = True


def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    """Of very different sizes; that of one element is not finite at BAD_STEP."""
    generator = torch.Generator().manual_seed(100 + step)
    grads = {
        name: torch.randn(shape, generator=generator) * 10.0 ** (i % 4 - 2)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    if step == BAD_STEP:
        grads["blocks.0.experts"][1, 2, 3] = math.nan
    return grads


class LocalStatistics(UpdateRule):
    """What an optimizer does that takes its fragments for tensors."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.weight_decay, self.layer_decay = rule.weight_decay, rule.layer_decay

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        return self.rule.initial_state(shard)

    def attach(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        self.rule.attach(shards, replace(layout, mesh=Mesh()), device)

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        self.rule.update(shards, step, replace(layout, mesh=Mesh()))


def make_optimizer(rule: UpdateRule, fragments: list[Fragment], layout: Layout, **options: Any) -> Optimizer:
    whole = values()
    shards = [
        ParameterShard(f, take(whole[f.name], f), settings(f, rule), list(SHAPES).index(f.name)) for f in fragments
    ]
    optimizer = Optimizer([torch.zeros(1)], rule, **({"grad_clip": 1.0, "dynamic_loss_scale": False} | options))
    optimizer.attach(shards, layout)
    optimizer.param_groups[0]["lr"] = 1e-2
    return optimizer


def settings(fragment: Fragment, rule: UpdateRule) -> Settings:
    """As a model's layers would decide."""
    above = next(number for beginning, number in LAYERS_ABOVE.items() if fragment.name.startswith(beginning))
    exempt = len(fragment.shape) < 2
    return Settings(0.0 if exempt else rule.weight_decay, rule.layer_decay**above, exempt)


def run(optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        grads = gradients(step)
        for shard in optimizer.shards:
            shard.grad = take(grads[shard.fragment.name], shard.fragment) * optimizer.loss_scale
        optimizer.step()


def take(whole: Tensor, fragment: Fragment) -> Tensor:
    box = whole[fragment.box.slices_of(Fragment.whole("", fragment.shape).box)]
    if fragment.is_box:
        return box.contiguous()
    return box.reshape(-1)[fragment.start : fragment.stop].clone()


def whole_optimizer(rule: UpdateRule, **options: Any) -> Optimizer:
    fragments = [Fragment.whole(name, shape) for name, shape in SHAPES.items()]
    return make_optimizer(rule, fragments, Layout(tuple(TensorLayout(*item) for item in SHAPES.items())), **options)


def whole_run(name: str, steps: int) -> dict[str, Tensor]:
    """-> the values and state after so many steps, by name."""
    optimizer = whole_optimizer(build_update_rule(CONFIGS[name]))
    run(optimizer, steps)
    return {p.fragment.name: p.value for p in optimizer.shards} | {f.name: t for f, t in optimizer.state_tensors()}


@functools.cache
def sharded_runs(grid: Grid, steps: int, local: bool = False) -> dict[str, dict[str, Tensor]]:
    """-> for each of CONFIGS what whole_run gives, put together from the fragments of real ranks."""
    ranks = run_world(grid.data * grid.tensor, _sharded_rank, grid, steps, local)
    assert all(torch.equal(ranks[0][c][n], other[c][n]) for other in ranks for c in CONFIGS for n in ranks[0][c])
    return ranks[0]


def _sharded_rank(world: World, grid: Grid, steps: int, local: bool) -> dict[str, dict[str, Tensor]]:
    layout, fragments = cut(grid)
    found = {}
    for name, config in CONFIGS.items():
        rule = build_update_rule(config)
        optimizer = make_optimizer(LocalStatistics(rule) if local else rule, fragments, layout)
        run(optimizer, steps)
        parts = [(p.fragment, p.value) for p in optimizer.shards]
        found[name] = gather(parts if local else parts + optimizer.state_tensors())
    return found


def cut(grid: Grid) -> tuple[Layout, list[Fragment]]:
    """The layout of a grid and this rank's fragments; a rank may well have none of a tensor, or none at all."""
    rank = dist.get_rank()
    across = [dist.new_group(list(range(i, grid.data * grid.tensor, grid.tensor))) for i in range(grid.tensor)]
    along = [dist.new_group(list(range(i * grid.tensor, (i + 1) * grid.tensor))) for i in range(grid.data)]
    data_rank, tensor_rank = divmod(rank, grid.tensor)
    mesh = Mesh(
        sizes={Axis.DATA: grid.data, Axis.TENSOR: grid.tensor},
        groups={frozenset({Axis.DATA}): across[tensor_rank], frozenset({Axis.TENSOR}): along[data_rank]},
    )
    split_over = {name: {Axis.DATA, Axis.TENSOR} if name in SPLIT else {Axis.DATA} for name in SHAPES}
    layout = Layout(tuple(TensorLayout(n, shape, frozenset(split_over[n])) for n, shape in SHAPES.items()), mesh)
    boxes = {name: local_box(name, tensor_rank, grid.tensor) for name in SHAPES}
    share = flat_shares if grid.flat else even_shares
    return layout, [
        Fragment(name, SHAPES[name], boxes[name], start, stop)
        for name, start, stop in share(boxes, data_rank, grid.data)
        if start < stop
    ]


def local_box(name: str, rank: int, size: int) -> Box:
    box = Fragment.whole(name, SHAPES[name]).box
    if name not in SPLIT:
        return box
    dim = SPLIT[name][1]
    part = box.size[dim] // size
    replaced = [(*old[:dim], new, *old[dim + 1 :]) for old, new in zip(box, (rank * part, part), strict=True)]
    return Box(*replaced)


def flat_shares(boxes: dict[str, Box], rank: int, size: int) -> Iterator[tuple[str, int, int]]:
    """All tensors one after the other, in `size` equal ranges."""
    ends = list(itertools.accumulate(box.numel for box in boxes.values()))
    share = -(-ends[-1] // size)
    for (name, box), end in zip(boxes.items(), ends, strict=True):
        begin = end - box.numel
        yield name, max(0, rank * share - begin), min(box.numel, (rank + 1) * share - begin)


def even_shares(boxes: dict[str, Box], rank: int, size: int) -> Iterator[tuple[str, int, int]]:
    """Each tensor in `size` equal ranges, the last of which may be short or empty."""
    for name, box in boxes.items():
        share = -(-box.numel // size)
        yield name, min(box.numel, rank * share), min(box.numel, (rank + 1) * share)


def gather(parts: list[tuple[Fragment, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors from all ranks' fragments. Elements that several ranks hold must agree; all must be held."""
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, parts)
    found: dict[str, Tensor] = {}
    for fragment, tensor in itertools.chain(*held):
        whole = found.setdefault(fragment.name, torch.full(fragment.shape, math.nan))
        for box, start in fragment.boxes():
            place = whole[box.slices_of(Fragment.whole("", fragment.shape).box)]
            mine = tensor.reshape(-1)[start : start + box.numel].view(box.size)
            assert place.isnan().all() or torch.equal(place, mine)
            place.copy_(mine)
    assert not any(whole.isnan().any() for whole in found.values())
    return found


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor, relative to its norm."""
    return {n: float((found[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-12)) for n in found}

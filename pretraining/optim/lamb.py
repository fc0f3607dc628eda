"""LAMB (You et al. 2019, algorithm 2) on fragments: the trust ratio is that of the whole tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pretraining.optim.base import ParameterShard, Step, UpdateRule, or_nothing
from pretraining.optim.config import LambConfig
from pretraining.parallel.layout import Layout

# Elements that are worked on at a time: what stays in a core's cache; on a GPU, few launches.
CPU_CHUNK, GPU_CHUNK = 2**20, 2**24


class ElementRange(NamedTuple):
    """Elements [start, stop) of a shard, given by its number."""

    shard: int
    start: int
    stop: int


class Lamb(UpdateRule):
    """The update is written over the gradients: only the buffer of a chunk takes memory in addition to the state."""

    factor_names = ("trust_ratio",)

    def __init__(self, config: LambConfig) -> None:
        self.config = config
        self.weight_decay, self.layer_decay = config.weight_decay, config.layer_decay

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(shard.value), "exp_avg_sq": torch.zeros_like(shard.value)}

    def attach(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        self.chunks = list(chunks(shards, CPU_CHUNK if device.type == "cpu" else GPU_CHUNK))
        self.buffer = torch.empty(
            max((sum(s.stop - s.start for s in c) for c in self.chunks), default=0), device=device
        )
        self.numbers = torch.tensor([p.tensor for p in shards], dtype=torch.long, device=device)
        self.span_numbers = torch.tensor([shards[s.shard].tensor for c in self.chunks for s in c], device=device)
        self.lr_scales = torch.tensor([p.settings.lr_scale for p in shards], device=device)
        self.decays = torch.tensor([p.settings.weight_decay for p in shards], device=device)
        adapted = [self.config.adapt_1d or not p.settings.exempt for p in shards]
        self.adapted = torch.tensor(adapted, device=device)

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        squares = torch.zeros(len(layout.tensors), 2, device=step.updates.device)
        if shards:
            inside = 0.0 if self.config.decoupled_decay else 1.0
            factors = list((-self.decays * inside * step.taking_part[self.numbers]).unbind())
            norms = [self._write_descent(shards, chunk, factors, step) for chunk in self.chunks]
            squares.index_add_(0, self.span_numbers, torch.cat(norms).square())
        norms_of_tensors = layout.sum_over_parts(squares).sqrt()
        if shards:
            ratios = self._trust_ratios(norms_of_tensors)
            self.factors = {"trust_ratio": ratios}
            self._descend(shards, ratios, step)

    def _write_descent(
        self, shards: list[ParameterShard], chunk: list[ElementRange], factors: list[Tensor], step: Step
    ) -> Tensor:
        """Advances the moments and replaces the gradient by -(r + decay x), lines 6 to 10 of the algorithm.

        factors: -decay of each shard. -> [spans, 2], the norms of x and of the update. A step that is not finite leaves
        the moments alone.
        """

        def of_chunk(tensors: list[Tensor]) -> list[Tensor]:
            return [t.view(-1)[s.start : s.stop] for t, s in zip(tensors, chunk, strict=True)]

        owners = [shards[s.shard] for s in chunk]
        values, grads = of_chunk([p.value for p in owners]), of_chunk([p.grad for p in owners])
        sizes = [s.stop - s.start for s in chunk]
        descent = list(self.buffer[: sum(sizes)].split(sizes))
        for shard, value, out in zip(chunk, values, descent, strict=True):
            # -0.0, not 0.0: of a step that is skipped, -0.0 times this times -0.0 is added to x, see or_nothing.
            torch.mul(value, factors[shard.shard], out=out)
        self._subtract_adam(
            descent,
            grads,
            of_chunk([p.state["exp_avg"] for p in owners]),
            of_chunk([p.state["exp_avg_sq"] for p in owners]),
            step,
        )
        torch._foreach_copy_(grads, descent)
        return torch.stack(torch._foreach_norm(values + descent)).view(2, -1).T

    def _subtract_adam(
        self, values: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], step: Step
    ) -> None:
        """values -= r, by torch's fused Adam with learning rate 1; after infinitely many steps it corrects no bias."""
        updates = step.updates if self.config.bias_correction else torch.full_like(step.updates, math.inf)
        beta1, beta2 = self.config.betas
        adamw(
            values,
            grads,
            first,
            second,
            [],
            list(updates.repeat(len(values)).unbind()),
            fused=True,
            grad_scale=step.grad_scale,
            found_inf=1.0 - step.finite,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=1.0,
            weight_decay=0.0,
            eps=self.config.eps,
            maximize=False,
        )

    def _trust_ratios(self, norms: Tensor) -> Tensor:
        """norms: [tensors, 2], of x and of its update -> [shards], line 11 with phi the identity."""
        weight, update = norms[self.numbers].unbind(1)
        ratios = weight / update
        if self.config.trust_clip is not None:
            ratios = ratios.clamp(*self.config.trust_clip)
        return torch.where(self.adapted & (weight > 0) & (update > 0), ratios, 1.0)

    def _descend(self, shards: list[ParameterShard], ratios: Tensor, step: Step) -> None:
        values = [p.value for p in shards]
        rates = step.lr * step.finite * self.lr_scales
        if self.config.decoupled_decay:
            decays = self.decays * step.taking_part[self.numbers]
            torch._foreach_mul_(values, list((1.0 - rates * decays).unbind()))
        factors = or_nothing(rates * ratios, step.finite)
        torch._foreach_addcmul_(values, [p.grad for p in shards], list(factors.unbind()))


def chunks(shards: list[ParameterShard], limit: int) -> Iterator[list[ElementRange]]:
    """The shards' elements in order, `limit` at a time."""
    chunk: list[ElementRange] = []
    room = limit
    for number, shard in enumerate(shards):
        start, numel = 0, shard.value.numel()
        while start < numel:
            stop = min(numel, start + room)
            chunk.append(ElementRange(number, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield chunk
                chunk, room = [], limit
    if chunk:
        yield chunk

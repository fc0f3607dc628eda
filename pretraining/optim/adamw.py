"""AdamW (Loshchilov and Hutter 2019, algorithm 2): torch's fused kernel. It works element by element, so that a
fragment of a tensor is updated as it would be within the whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pretraining.optim.base import ParameterShard, Settings, Step, UpdateRule, by_settings
from pretraining.optim.config import AdamWConfig
from pretraining.parallel.layout import Layout


class AdamW(UpdateRule):
    """A tensor that never had a gradient is left alone, as torch leaves one whose gradient is None.

    trained: [tensors], 1.0 where one had. waiting: numbers of the tensors of which this is not known here yet. Whether
    they are decayed is decided on the device: each has a launch of its own, with a flag of its own. Elements are
    computed the same way in either case, so it does not matter when the host learns of it.
    """

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config
        self.weight_decay, self.layer_decay = config.weight_decay, config.layer_decay

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(shard.value), "exp_avg_sq": torch.zeros_like(shard.value)}

    def attach(self, shards: list[ParameterShard], layout: Layout, device: torch.device) -> None:
        self._begin(shards, torch.zeros(len(layout.tensors), device=device))

    def after_load(self, shards: list[ParameterShard], layout: Layout) -> None:
        """Averages that are zero all over are of a tensor that never had a gradient."""
        largest = torch.zeros_like(self.trained)
        averages = [p.state[name] for p in shards for name in ("exp_avg", "exp_avg_sq")]
        if averages:
            numbers = torch.tensor([p.tensor for p in shards for _ in range(2)], device=largest.device)
            # not squares: those of small numbers vanish
            norms = torch.stack(torch._foreach_norm(averages, float("inf")))
            largest.index_add_(0, numbers, (norms > 0).float())
        self._begin(shards, (layout.sum_over_parts(largest) > 0).float())

    def _begin(self, shards: list[ParameterShard], trained: Tensor) -> None:
        self.trained, self.calls = trained, 0
        # without decay, an update by a gradient of zeros is none
        self.waiting = {p.tensor for p in shards if p.settings.weight_decay}

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        self.trained = torch.maximum(self.trained, step.taking_part * step.finite)
        self.calls += 1
        if self.waiting and self.calls & (self.calls - 1) == 0:  # 1, 2, 4, 8, ...: it waits for the device
            self.waiting -= set(self.trained.nonzero().flatten().tolist())
        for settings, group in by_settings(shards).items():
            for part, finite in self._parts(group, step.finite):
                self._update(part, settings, step, finite)

    def _parts(self, group: list[ParameterShard], finite: Tensor) -> Iterator[tuple[list[ParameterShard], Tensor]]:
        """What is updated in one launch, with the flag that lets it be."""
        if known := [p for p in group if p.tensor not in self.waiting]:
            yield known, finite
        for shard in group:
            if shard.tensor in self.waiting:
                yield [shard], finite * self.trained[shard.tensor]

    def _update(self, shards: list[ParameterShard], settings: Settings, step: Step, finite: Tensor) -> None:
        beta1, beta2 = self.config.betas
        adamw(
            [p.value for p in shards],
            [p.grad for p in shards],
            [p.state["exp_avg"] for p in shards],
            [p.state["exp_avg_sq"] for p in shards],
            [],
            list(step.updates.repeat(len(shards)).unbind()),
            fused=True,
            grad_scale=step.grad_scale,
            found_inf=1.0 - finite,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=step.lr * settings.lr_scale,
            weight_decay=settings.weight_decay,
            eps=self.config.eps,
            maximize=False,
        )

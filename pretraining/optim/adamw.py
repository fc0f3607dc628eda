"""AdamW (Loshchilov and Hutter 2019, algorithm 2): torch's fused kernel. It works element by element, so that a
fragment of a tensor is updated as it would be within the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pretraining.optim.base import ParameterShard, Step, UpdateRule, by_settings
from pretraining.optim.config import AdamWConfig
from pretraining.parallel.layout import Layout


class AdamW(UpdateRule):
    def __init__(self, config: AdamWConfig) -> None:
        self.config = config
        self.weight_decay, self.layer_decay = config.weight_decay, config.layer_decay

    def initial_state(self, shard: ParameterShard) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(shard.value), "exp_avg_sq": torch.zeros_like(shard.value)}

    def update(self, shards: list[ParameterShard], step: Step, layout: Layout) -> None:
        beta1, beta2 = self.config.betas
        for settings, group in by_settings(shards).items():
            steps = list(step.updates.repeat(len(group)).unbind())
            adamw(
                [p.value for p in group],
                [p.grad for p in group],
                [p.state["exp_avg"] for p in group],
                [p.state["exp_avg_sq"] for p in group],
                [],
                steps,
                fused=True,
                grad_scale=step.grad_scale,
                found_inf=1.0 - step.finite,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=step.lr * settings.lr_scale,
                weight_decay=settings.weight_decay,
                eps=self.config.eps,
                maximize=False,
            )

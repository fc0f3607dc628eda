"""The reference engine: one process, or torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pretraining.engines.protocol import Batch, LossModule, frozen_tensors, trainable
from pretraining.optim.base import Optimizer, Piece, Rule, settings_by_name
from pretraining.optim.shards import Fragment, Layout
from pretraining.parallel.launch import World


class TorchEngine:
    def __init__(self, module: LossModule, rule: Rule, train: Any, world: World) -> None:
        self.world = world
        self.module = module.to(world.device)
        self.parameters = trainable(self.module)
        self.optimizer = Optimizer(list(self.parameters.values()), rule, train.grad_clip, train.precision == "fp16")
        self.shapes = {n: tuple(p.shape) for n, p in self.parameters.items()}
        layout = Layout(tuple(self.shapes), tuple(self.shapes.values()))
        self.optimizer.attach(self._pieces(rule), layout, self._read_gradients)
        self.wrapped = self._wrap(module)

    def _wrap(self, module: LossModule) -> Any:
        if self.world.data_size == 1:
            return module
        return DistributedDataParallel(module, process_group=self.world.data_group, gradient_as_bucket_view=True,
                                       device_ids=[self.world.device] if self.world.device.type == "cuda" else None)

    def _pieces(self, rule: Rule) -> list[Piece]:
        settings = settings_by_name(self.shapes.items(), rule.weight_decay, rule.layer_decay)
        return [Piece(Fragment.whole(name, self.shapes[name]), parameter.data, settings[name], number)
                for number, (name, parameter) in enumerate(self.parameters.items())]

    def _read_gradients(self) -> None:
        for piece, (name, parameter) in zip(self.optimizer.pieces, self.parameters.items(), strict=True):
            assert parameter.grad is not None, f"{name} took no part in the loss"
            piece.grad = parameter.grad

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.wrapped(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        synced = last or self.world.data_size == 1
        with contextlib.nullcontext() if synced else self.wrapped.no_sync():
            # DDP averages over the ranks
            (loss * self.optimizer.loss_scale * self.world.data_size).backward()

    def step(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        self.module.eval()
        with torch.no_grad():
            losses = self.module(batch)
        self.module.train()
        return losses

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        weights = [(p.fragment.renamed(f"weights.{p.fragment.name}"), p.value) for p in self.optimizer.pieces]
        return weights + frozen_tensors(self.module) + self.optimizer.state_tensors()

    def after_load(self) -> None:
        """Nothing is derived: the pieces are the parameters."""

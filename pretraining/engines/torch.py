"""The reference engine: one process, or torch's DistributedDataParallel; alone or over tensor-parallel ranks.

With engine.shard_optimizer each data-parallel rank updates whole tensors of its own and sends them to the others
(Rajbhandari et al. 2020, "ZeRO", stage 1, by tensors): a quarter of the optimizer's state on four ranks.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pretraining.engines.base import Batch, FrozenParameters, LossModule, ParameterLayout, trainable
from pretraining.engines.config import EngineConfig
from pretraining.optim.base import Optimizer, ParameterShard, UpdateRule
from pretraining.optim.groups import settings_by_name
from pretraining.parallel.fragments import Fragment, Layout
from pretraining.parallel.launch import World


class TorchEngine:
    def __init__(self, config: EngineConfig, module: LossModule, rule: UpdateRule, train: Any, world: World) -> None:
        self.world, self.rule = world, rule
        self.module = module.to(world.device)
        self.parameters = trainable(self.module)
        self.places, self.frozen = ParameterLayout(self.parameters, world), FrozenParameters(self.module, world)
        self.owners = self._owners() if config.shard_optimizer and world.data_size > 1 else None
        self.partial = [p for p in self.parameters.values() if getattr(p, "sequence_parallel", False)]
        self.optimizer = Optimizer(list(self.parameters.values()), rule, train.grad_clip, train.precision == "fp16")
        split = self.world.data_group if self.owners else None
        layout = Layout(self.places.names, self.places.shapes, self.places.split, split, world.tensor_group)
        self.optimizer.attach(self._pieces(), layout, self._read_gradients)
        self.wrapped = self._wrap(module)

    def _wrap(self, module: LossModule) -> Any:
        if self.world.data_size == 1:
            return module
        return DistributedDataParallel(
            module,
            process_group=self.world.data_group,
            gradient_as_bucket_view=True,
            device_ids=[self.world.device] if self.world.device.type == "cuda" else None,
        )

    def _pieces(self) -> list[ParameterShard]:
        rule = self.rule
        settings = settings_by_name(self.module.model, self.places.names, rule.weight_decay, rule.layer_decay)
        return [
            ParameterShard(self.places.whole(name), self.parameters[name].data, settings[name], number)
            for number, name in enumerate(self.places.names)
            if self.owners is None or self.owners[name] == self.world.data_rank
        ]

    def _owners(self) -> dict[str, int]:
        """The data-parallel rank that updates each tensor: the largest first, each to the rank with the least."""
        load, owners = [0] * self.world.data_size, {}
        for name in sorted(self.places.names, key=lambda n: -self.parameters[n].numel()):
            owners[name] = load.index(min(load))
            load[owners[name]] += self.parameters[name].numel()
        return owners

    def _read_gradients(self) -> None:
        for parameter in self.partial:  # each tensor-parallel rank saw its part of the sequence
            dist.all_reduce(parameter.grad, group=self.world.tensor_group)
        for piece in self.optimizer.pieces:
            gradient = self.parameters[piece.fragment.name].grad
            assert gradient is not None, f"{piece.fragment.name} took no part in the loss"
            piece.grad = gradient

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
        if self.owners is not None:
            self._share_updates(self.owners)

    def _share_updates(self, owners: dict[str, int]) -> None:
        group = self.world.data_group
        waiting = [
            dist.broadcast(self.parameters[name].data, dist.get_global_rank(group, owner), group=group, async_op=True)
            for name, owner in owners.items()
        ]
        for work in waiting:
            work.wait()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        self.module.eval()
        with torch.no_grad():
            losses = self.module(batch)
        self.module.train()
        return losses

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        weights = [(self.places.whole(n).renamed(f"weights.{n}"), p.data) for n, p in self.parameters.items()]
        return weights + self.frozen.tensors() + self.optimizer.state_tensors()

    def after_load(self) -> None:
        """Nothing is derived: the pieces are the parameters."""

"""engine=torch and engine=megatron: one process, or torch's DistributedDataParallel. The reference for the others.

Tensor parallelism (engine=megatron) is in the layers that the model was built from: this engine is the same.

With engine.shard_optimizer each data-parallel rank updates whole tensors of its own and sends them to the others
(Rajbhandari et al. 2020, "ZeRO", stage 1, by tensors): a quarter of the optimizer's state on four ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pretraining.config import TrainConfig
from pretraining.engines.base import Batch, EngineBase, LossModule, Start
from pretraining.engines.config import EngineConfig
from pretraining.optim.base import ParameterShard, UpdateRule
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.marks import is_sequence_parallel
from pretraining.parallel.mesh import Axis
from pretraining.parallel.world import World


class TorchEngine(EngineBase):
    def __init__(
        self, config: EngineConfig, module: LossModule, rule: UpdateRule, train: TrainConfig, world: World, start: Start
    ) -> None:
        super().__init__(module, rule, train, world, start)
        self.owners = self._owners() if config.shard_optimizer and world.mesh.shard_ranks > 1 else None
        self.partial = [p for p in self.parameters.values() if is_sequence_parallel(p)]
        layout = self.layout.for_optimizer(dealt=self.owners is not None)
        self.optimizer.attach(self._shards(), layout, self._read_gradients)
        self.distributed = self._distributed() if world.mesh.gradient_ranks > 1 else None

    def _distributed(self) -> DistributedDataParallel:
        distributed = DistributedDataParallel(
            self.module,
            process_group=self.world.mesh.gradient_group,
            gradient_as_bucket_view=True,  # no second copy of the gradients
            device_ids=[self.world.device] if self.world.device.type == "cuda" else None,
        )
        self._settle_buckets(distributed)
        return distributed

    def _settle_buckets(self, distributed: DistributedDataParallel) -> None:
        """A backward of nothing, after which DDP's buckets stay as they are.

        DDP rebuilds its buckets once, in the order in which the gradients of a process's first backward came. Where
        an element lies in a bucket decides in which order four ranks or more add it up: the first step of a resumed run
        would add in another order than the same step of an uninterrupted one. Here they come in the order that the
        buckets have already: autograd takes the last of the sums below first.
        """
        instance = vars(self.module)
        instance["forward"] = lambda: torch.stack([p.sum() for p in self.parameters.values()]).sum() * 0.0
        distributed().backward()
        del instance["forward"]  # from here on the class's again
        self.module.zero_grad(set_to_none=True)

    def forward_backward(self, batch: Batch, weights: Mapping[str, float], last: bool) -> dict[str, Tensor]:
        if self.distributed is None:
            sums = self.module(batch)
            self.scaled(sums, weights).backward()
            return sums
        # DDP decides at the forward whether the backward that follows reduces: no_sync must hold around both
        with contextlib.nullcontext() if last else self.distributed.no_sync():
            sums = self.distributed(batch)
            self.scaled(sums, weights).backward()
        return sums

    def _shards(self) -> list[ParameterShard]:
        return [
            ParameterShard(self._updated(name), self.parameters[name].data, self.settings[name], number)
            for number, name in enumerate(self.layout.names)
            if self.owners is None or self.owners[name] == self.world.mesh.shard_rank
        ]

    def _updated(self, name: str) -> Fragment:
        """What this rank updates of the tensor, and has optimizer state of: an owner is the only one that has."""
        whole = self.layout.whole(name)
        return whole if self.owners is None else replace(whole, copied_over=whole.copied_over - {Axis.DATA})

    def _owners(self) -> dict[str, int]:
        """The data-parallel rank that updates each tensor: the largest first, each to the rank with the least."""
        load, owners = [0] * self.world.mesh.shard_ranks, {}
        # layout.names has the same order on all ranks, and sorting is stable: all come to the same owners
        for name in sorted(self.layout.names, key=lambda n: -self.parameters[n].numel()):
            owners[name] = load.index(min(load))
            load[owners[name]] += self.parameters[name].numel()
        return owners

    def _read_gradients(self) -> None:
        for parameter in self.partial:  # each tensor-parallel rank saw its part of the sequence
            dist.all_reduce(parameter.grad, group=self.world.mesh.group(Axis.TENSOR))
        for shard in self.optimizer.shards:
            gradient = self.parameters[shard.fragment.name].grad
            assert gradient is not None, f"{shard.fragment.name} took no part in the loss"
            shard.grad = gradient

    def step(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)  # an optimizer's loads torch's compiler
        if self.owners is not None:
            self._share_updates(self.owners)

    def _share_updates(self, owners: dict[str, int]) -> None:
        group = self.world.mesh.shard_group
        assert group is not None, "tensors are dealt where there are ranks to deal them to"
        waiting = [  # all at once: one by one, each would wait for the slowest rank
            dist.broadcast(self.parameters[name].data, dist.get_global_rank(group, owner), group=group, async_op=True)
            for name, owner in owners.items()
        ]
        for work in waiting:
            work.wait()

"""What an engine does for the trainer: all micro-batches of a step, the optimizer step, and naming the tensors that a
checkpoint holds."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pretraining.config import TrainConfig
from pretraining.engines.parameters import ParameterLayout, parameter_name
from pretraining.models.base import Model
from pretraining.objectives.base import Objective
from pretraining.optim.base import Optimizer, UpdateRule
from pretraining.optim.groups import settings_by_name
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.mesh import Axis
from pretraining.parallel.replicas import unequal_replicas
from pretraining.parallel.world import World

Batch = Mapping[str, Tensor]
Start = Callable[[], None]  # gives a model's parameters their first values; nothing where a checkpoint follows
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossModule(nn.Module):
    """The model together with its objective: what DDP and DeepSpeed wrap, so that their hooks see one forward.

    Parameters, gradients and reductions stay fp32; `precision` is that of the computation (autocast).
    """

    def __init__(self, model: Model, objective: Objective, precision: str) -> None:
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The sum over the batch of every term and metric, fp32 scalars."""
        with self._compute_type(next(iter(batch.values())).device.type):
            return self.objective.loss(self.model, batch)

    def _compute_type(self, device: str) -> contextlib.AbstractContextManager:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, COMPUTE_TYPES[self.precision])


class Engine(Protocol):
    """A training step is `run`, then `step`. Batches may lie on the host: each is moved when its turn comes."""

    optimizer: Optimizer

    def run(
        self, micro_batches: Sequence[Batch], weights: Mapping[str, float], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Forward and backward of this rank's micro-batches of one step, all of them in one call: only so can the
        gradients be reduced once, or a pipeline be kept full.

        weights: what each loss term's sum is multiplied by, its weight over its count in the whole global batch; the
        gradients are summed over the ranks, never averaged.
        seeds: of torch's generator, one for each micro-batch: dropout depends on nothing drawn before.
        -> the sums of terms and metrics over this rank's micro-batches, fp32 scalars still on the device.
        """
        ...

    def step(self, lr: float) -> None:
        """Clips, updates the parameters, and clears the gradients."""
        ...

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """The sums of terms and metrics over a micro-batch, without dropout and gradients."""
        ...

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        """Every logical tensor of weights and optimizer state that this rank holds a fragment of. Fragments that other
        ranks hold as well say so: a save fails where a tensor would be written twice, or not at all."""
        ...

    def after_load(self) -> None:
        """Brings everything derived from `tensors()` up to date once they were overwritten."""
        ...

    def unequal_replicas(self) -> Mapping[str, float]:
        """Weights whose copies on several ranks are not the same, see pretraining.parallel.replicas. A collective."""
        ...

    def whole_model(self) -> Model | None:
        """The model, where this rank holds all of its weights; its forward then needs no other rank. None elsewhere."""
        ...


class EngineBase(ABC):
    """What all engines have in common; each says how a micro-batch runs, a step ends and tensors are laid out."""

    def __init__(self, module: LossModule, rule: UpdateRule, train: TrainConfig, world: World, start: Start) -> None:
        self.module, self.rule, self.world = module, rule, world
        self.evaluated: nn.Module = self.module  # what a forward outside of a step calls
        every = {parameter_name(n): p for n, p in self.module.named_parameters()}
        self.parameters = {name: p for name, p in every.items() if p.requires_grad}
        self.frozen = {name: p for name, p in every.items() if not p.requires_grad}
        self.layout, self.frozen_layout = (
            ParameterLayout(ps, module.model, world.mesh) for ps in (self.parameters, self.frozen)
        )
        # here, before an engine shards them: ZeRO 3 empties the parameters, and their shapes decide
        self.settings = settings_by_name(module.model, self.layout.names, rule.weight_decay, rule.layer_decay)
        self.fill(start)
        self.optimizer = Optimizer(list(self.parameters.values()), rule, train.grad_clip, train.precision == "fp16")

    def fill(self, start: Start) -> None:
        """Gives the parameters their first values, and brings the module to its device."""
        start()
        self.module.to(self.world.device)

    @abstractmethod
    def forward_backward(self, batch: Batch, weights: Mapping[str, float], last: bool) -> dict[str, Tensor]:
        """One micro-batch -> the sums of its terms and metrics. last: of the step; only then gradients are reduced."""

    def run(
        self, micro_batches: Sequence[Batch], weights: Mapping[str, float], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for number, (batch, seed) in enumerate(zip(micro_batches, seeds, strict=True), 1):
            torch.manual_seed(seed)  # of the device as well: dropout there draws from it
            sums = self.forward_backward(self._on_device(batch), weights, last=number == len(micro_batches))
            totals = {name: totals.get(name, 0.0) + value.detach() for name, value in sums.items()}
        return totals

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        self.evaluated.eval()
        with torch.no_grad():
            sums = self.evaluated(self._on_device(batch))
        self.evaluated.train()
        return sums

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        return self.weights() + self.frozen_weights() + self.optimizer.state_tensors()

    def weights(self) -> list[tuple[Fragment, Tensor]]:
        """This rank's fragments of the parameters that are trained, by their names in a checkpoint."""
        return [(self.layout.whole(n).renamed(f"weights.{n}"), p.data) for n, p in self.parameters.items()]

    def frozen_weights(self) -> list[tuple[Fragment, Tensor]]:
        """The same of those that are not: a checkpoint holds the whole model."""
        return [(self.frozen_layout.whole(n).renamed(f"weights.{n}"), p.data) for n, p in self.frozen.items()]

    def after_load(self) -> None:
        self.optimizer.after_load()

    def unequal_replicas(self) -> Mapping[str, float]:
        return unequal_replicas({**self.parameters, **self.frozen}, self.world.mesh)

    def whole_model(self) -> Model | None:
        return self.module.model if self.world.mesh.size(Axis.TENSOR) == 1 else None

    def scaled(self, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """What backward starts from. Both DDP and DeepSpeed average over the data-parallel ranks: undone here."""
        loss = torch.stack([sums[term] * weight for term, weight in weights.items()]).sum()
        return loss * self.optimizer.loss_scale * self.world.mesh.gradient_ranks

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in batch.items()}

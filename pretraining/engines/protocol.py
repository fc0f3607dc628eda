"""What an engine does for the trainer: forward, backward, step, and naming the tensors that a checkpoint holds."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretraining.optim.base import Optimizer
from pretraining.optim.shards import Fragment

Batch = dict[str, Tensor]
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossModule(nn.Module):
    """The model together with its objective: what DDP and DeepSpeed wrap, so that their hooks see one forward.

    Parameters, gradients and reductions stay fp32; `precision` is that of the computation (autocast).
    """

    def __init__(self, model: nn.Module, objective: Any, precision: str) -> None:
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """-> {term: sum over the batch}."""
        with self._compute_type(next(iter(batch.values())).device.type):
            return self.objective.loss(self.model, batch)

    def _compute_type(self, device: str) -> contextlib.AbstractContextManager:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, COMPUTE_TYPES[self.precision])


class Engine(Protocol):
    """One training step is: forward and backward for each micro-batch, then step.

    A loss given to `backward` is this rank's share of the global loss: gradients are summed over the
    data-parallel ranks, never averaged.
    """

    optimizer: Optimizer

    def forward(self, batch: Batch) -> dict[str, Tensor]: ...

    def backward(self, loss: Tensor, last: bool) -> None: ...

    def step(self, lr: float) -> None: ...

    def evaluate(self, batch: Batch) -> dict[str, Tensor]: ...

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        """Every logical tensor of weights and optimizer state that this rank holds a fragment of."""
        ...

    def after_load(self) -> None:
        """Brings everything derived from `tensors()` up to date once they were overwritten."""
        ...


def parameter_name(name: str) -> str:
    """A parameter's name within the model, given that within the LossModule."""
    return name.removeprefix("model.")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {parameter_name(n): p for n, p in module.named_parameters() if p.requires_grad}


def frozen_tensors(module: nn.Module) -> list[tuple[Fragment, Tensor]]:
    return [(Fragment.whole(f"weights.{parameter_name(n)}", tuple(p.shape)), p.data)
            for n, p in module.named_parameters() if not p.requires_grad]

"""What an engine does for the trainer: forward, backward, step, and naming the tensors that a checkpoint holds."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretraining.models.base import Model
from pretraining.optim.base import Optimizer
from pretraining.parallel.fragments import Fragment
from pretraining.parallel.launch import World
from pretraining.parallel.layers import box_of

Batch = dict[str, Tensor]
COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossModule(nn.Module):
    """The model together with its objective: what DDP and DeepSpeed wrap, so that their hooks see one forward.

    Parameters, gradients and reductions stay fp32; `precision` is that of the computation (autocast).
    """

    def __init__(self, model: Model, objective: Any, precision: str) -> None:
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


class ParameterLayout:
    """Where this rank's parameters lie in the whole tensors, those split over tensor-parallel ranks first.

    names, shapes: of the whole tensors, in the order of the Layout; the first `split` are split. To be made before
    ZeRO 3, which empties the parameters.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], world: World) -> None:
        found = {name: box_of(p, world.tensor_size, world.tensor_rank) for name, p in parameters.items()}
        is_split = {name: shape != box.size for name, (shape, box) in found.items()}
        self.names = tuple(sorted(found, key=lambda name: not is_split[name]))
        self.split = sum(is_split.values())
        self.shapes = tuple(found[name][0] for name in self.names)
        self._found = found

    def whole(self, name: str) -> Fragment:
        """All that this rank has of the tensor."""
        shape, box = self._found[name]
        return Fragment(name, shape, box, 0, box.numel)


class FrozenParameters:
    """Parameters that are not trained: saved as well, so that a checkpoint holds the whole model."""

    def __init__(self, module: nn.Module, world: World) -> None:
        self.parameters = {parameter_name(n): p for n, p in module.named_parameters() if not p.requires_grad}
        self.places, self.world = ParameterLayout(self.parameters, world), world

    def tensors(self) -> list[tuple[Fragment, Tensor]]:
        return [self._place(name, p) for name, p in self.parameters.items()]

    def _place(self, name: str, parameter: Any) -> tuple[Fragment, Tensor]:
        whole = self.places.whole(name).renamed(f"weights.{name}")
        if not hasattr(parameter, "ds_tensor"):
            return whole, parameter.data
        part = parameter.ds_tensor.data.view(-1)  # ZeRO 3: a flat range each, padded at the end
        start = min(self.world.data_rank * part.numel(), whole.stop)
        stop = min(start + part.numel(), whole.stop)
        return Fragment(whole.name, whole.shape, whole.box, start, stop), part[: stop - start]

"""Norms of gradients, updates and weights by layer, exact whatever the layout, at an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretraining.run.metrics import LayersLine

if TYPE_CHECKING:
    from torch import Tensor

    from pretraining.optim.base import Optimizer


class LayerNorms:
    """Asks an optimizer to measure a step, and reads what it has found once that does not wait for the device.

    every: so many steps; 0 for none."""

    def __init__(self, every: int, optimizer: Optimizer) -> None:
        self.every, self.optimizer = every, optimizer

    def ask(self, step: int) -> None:
        """Before the optimizer's step, on all ranks."""
        self.optimizer.measures, self.optimizer.measured = self.every > 0 and step % self.every == 0, None

    def line(self, step: int, measured: Tensor) -> LayersLine:
        """measured: as the optimizer had it after `step`."""
        layout = self.optimizer.layout
        names = [tensor.name for tensor in layout.tensors]
        is_matrix = [len(tensor.shape) > 1 for tensor in layout.tensors]
        return LayersLine(step, by_layer(names, is_matrix, measured.tolist(), self.optimizer.rule.factor_names))


def by_layer(
    names: Sequence[str], is_matrix: Sequence[bool], rows: Sequence[Sequence[float]], factors: Sequence[str]
) -> dict[str, dict[str, float]]:
    """rows: of each tensor the norms of gradient, update and weights, then the factors.

    -> {"grad_norm": {layer: value}, "update": the update's norm over that of the weights, and of each factor the mean
    over the layer's matrices}."""
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(layer_of(name), []).append(number)
    found: dict[str, dict[str, float]] = {"grad_norm": {}, "update": {}, **{name: {} for name in factors}}
    for layer, numbers in members.items():
        gradient, update, weight = (math.hypot(*(rows[n][column] for n in numbers)) for column in range(3))
        found["grad_norm"][layer] = gradient
        if weight > 0:
            found["update"][layer] = update / weight
        matrices = [n for n in numbers if is_matrix[n]]
        for column, name in enumerate(factors, 3):
            if matrices:
                found[name][layer] = sum(rows[n][column] for n in matrices) / len(matrices)
    return found


def layer_of(name: str) -> str:
    """blocks.3.attention.query.weight -> blocks.3; token_embedding.weight -> token_embedding."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return parts[0] if number is None else ".".join(parts[: number + 1])

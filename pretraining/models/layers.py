"""What blocks are made of besides attention: norms, dropout, the feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.parallel.layers import Layers


def make_norm(kind: str, size: int, eps: float, bias: bool = True) -> nn.Module:
    """kind: layernorm, or rmsnorm, which has no bias."""
    if kind == "layernorm":
        return nn.LayerNorm(size, eps=eps, bias=bias)
    return nn.RMSNorm(size, eps=eps)


class Dropout(nn.Module):
    """Between Layers.enter and leave: of activations that may be split along the sequence."""

    def __init__(self, layers: Layers, rate: float) -> None:
        super().__init__()
        self.layers, self.rate = layers, rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        with self.layers.model_parallel_rng(sequence_only=True):
            return F.dropout(x, self.rate)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
    "gated_gelu": lambda x: F.gelu(x, approximate="tanh"),
}
GATED = {"swiglu", "gated_gelu"}


class FeedForward(nn.Module):
    """Two linear layers, or three with a gate (Shazeer 2020, "GLU Variants Improve Transformer").

    x: [batch, length, hidden] -> the same shape. dropout: between the activation and the last layer (T5 and ViT
    have it there).
    """

    def __init__(
        self, layers: Layers, hidden: int, intermediate: int, activation: str, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers, self.dropout = layers, nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.gate = layers.column(hidden, intermediate, bias) if activation in GATED else None
        self.up = layers.column(hidden, intermediate, bias)
        self.down = layers.row(intermediate, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        middle = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        if self.training and self.dropout.p:
            with self.layers.model_parallel_rng():
                middle = self.dropout(middle)
        return self.down(middle)

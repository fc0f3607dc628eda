"""The layers that models are built from: here plain torch; a tensor-parallel set has the same interface.

A model file asks its `Layers` object for column-, row- and vocabulary-parallel layers and never learns
whether they are sharded. Same names and, for one seed, same initial weights at every tensor-parallel size.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Layers(Protocol):
    size: int  # ranks that share each layer

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module: ...

    def row(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module: ...

    def embedding(self, num_embeddings: int, features: int) -> nn.Module: ...

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor: ...


class PlainLayers:
    """torch alone. Weights are left empty: a model initialises all of them by name (see layers.initialise)."""

    size = 1

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)

    def row(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        return nn.utils.skip_init(nn.Embedding, num_embeddings, features)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits: fp32 [n, vocabulary]; labels: [n] -> loss of each, [n]."""
        return F.cross_entropy(logits, labels, reduction="none")



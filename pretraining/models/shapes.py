"""A model of shapes without values, in next to no memory."""

from __future__ import annotations

import torch
from torch import nn

from pretraining.models.base import Model
from pretraining.models.config import ModelConfig
from pretraining.models.heads import BringsHeads, attach_heads
from pretraining.models.registry import build_model
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import EmptyEmbedding, EmptyLinear, PlainLayers


class MetaLayers(PlainLayers):
    """Layers on torch's meta device."""

    def column(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return EmptyLinear(in_features, out_features, bias, device="meta")

    row = column

    def embedding(self, num_embeddings: int, features: int) -> nn.Module:
        return EmptyEmbedding(num_embeddings, features, device="meta")

    def parameter(self, shape: tuple[int, ...], dim: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device="meta"))


def shapes_of(config: ModelConfig, vocabulary: Vocabulary, objective: BringsHeads) -> Model:
    """The model with its objective's heads, every tensor whole. What Layers make is on the meta device; fixed positions
    and small modules are real."""
    layers = MetaLayers()
    return attach_heads(build_model(config, vocabulary, layers), objective, layers)

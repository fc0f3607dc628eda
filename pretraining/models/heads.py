"""What objectives put on top of a model. Heads are built where they are used: an objective asks the model for those of
its family, and `attach_heads` makes them part of it, so that a model has the heads that its objective trains and no
others."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.models.base import Model, ShapedImageEncoder, ShapedTokenModel
from pretraining.models.layers import ACTIVATIONS, make_norm
from pretraining.models.loss import Rows, VocabularyLoss
from pretraining.models.vocabulary import padded_vocabulary
from pretraining.parallel.layers import EmptyLinear, Layers

M = TypeVar("M", bound=Model)
M_contra = TypeVar("M_contra", bound=Model, contravariant=True)

Ids = npt.NDArray[np.int64]


class BringsHeads(Protocol[M_contra]):
    """An objective, as far as heads are concerned."""

    def heads(self, model: M_contra, layers: Layers) -> Mapping[str, nn.Module]:
        """Modules for the top of `model`, by the attribute's name; their weights are still empty."""
        ...


def attach_heads(model: M, objective: BringsHeads[M], layers: Layers) -> M:
    """`model` with the objective's heads as attributes. To be called before `model.initialize`, which fills them too.

    The attributes' names are part of the parameters' names, and so of checkpoints and of the initial weights.
    """
    heads = objective.heads(model, layers)
    for name, head in heads.items():
        setattr(model, name, head)
    model.head_names = tuple(heads)
    return model


class TokenHead(nn.Module):
    """Projects hidden states to the vocabulary; padded and unused entries take no part in the softmax.

    weight: [padded vocabulary, features], or this rank's rows of it. used: ascending ids that take part, None for all.
    z_loss, label_smoothing: see VocabularyLoss; in training alone.
    """

    def __init__(
        self,
        layers: Layers,
        vocab_size: int,
        weight: nn.Parameter,
        bias: bool = False,
        used: Ids | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.vocab_size = layers, vocab_size
        self.z_loss, self.label_smoothing = z_loss, label_smoothing
        self.unused = () if used is None else _ranges_without(used, vocab_size)
        self.weight = weight
        self.bias = layers.parameter((weight.shape[0] * layers.size,), 0) if bias else None

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden: [..., features]; labels: int [...], IGNORED where there is none -> sum of the losses, fp32 scalar."""
        rows = Rows(self.vocab_size, self.layers.rank * self.weight.shape[0], self.layers.group, self.unused)
        added = (self.z_loss, self.label_smoothing) if self.training else (0.0, 0.0)
        return VocabularyLoss.apply(hidden.flatten(0, -2), self.weight, self.bias, labels.flatten(), rows, *added)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., features] -> [..., vocabulary], -inf for unused ids. For unsharded weights only."""
        logits = F.linear(hidden, self.weight, self.bias)[..., : self.vocab_size]
        for start, stop in self.unused:
            logits[..., start:stop] = -torch.inf
        return logits


def _ranges_without(used: Ids, vocab_size: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of the ids below `vocab_size` that are not in `used`, which ascends."""
    borders = [-1, *used.tolist(), vocab_size]
    return tuple((a + 1, b) for a, b in pairwise(borders) if b > a + 1)


def vocabulary_table(model: ShapedTokenModel, layers: Layers) -> nn.Parameter:
    """What a TokenHead projects with: the embedding's table where the model ties it, else one of the head's own."""
    if model.tie_embeddings:
        return model.token_embedding.get_parameter("weight")
    return layers.parameter((padded_vocabulary(model.vocab_size), model.config.hidden_size), 0)


class MaskedTokenHead(nn.Module):
    """Losses or logits of the masked positions alone: a dense layer, GELU, norm, then the embedding's table with a bias
    (Devlin et al. 2018; google-research/bert, run_pretraining.py, get_masked_lm_output).

    features: of the embedding's table (None: hidden_size). activation: as for FeedForward.
    """

    def __init__(
        self,
        model: ShapedTokenModel,
        layers: Layers,
        used: Ids | None = None,
        z_loss: float = 0.0,
        features: int | None = None,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        size, table = model.config.hidden_size, model.token_embedding.get_parameter("weight")
        self.activation = ACTIVATIONS[activation]
        self.transform = nn.Linear(size, features or size)
        self.norm = make_norm("layernorm", features or size, model.config.norm_eps)
        self.decoder = TokenHead(layers, model.vocab_size, table, bias=True, used=used, z_loss=z_loss)

    def forward(self, hidden: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """hidden: [batch, length, features]; positions, labels: int [batch, predictions], labels IGNORED where there is
        none -> sum of the losses, fp32 scalar."""
        return self.decoder(self._features(hidden, positions), labels)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """-> [batch, predictions, vocabulary]. For unsharded weights only."""
        return self.decoder.logits(self._features(hidden, positions))

    def _features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return self.norm(self.activation(self.transform(hidden[rows, positions])))


class PairHead(nn.Module):
    """How two segments belong together, from the pooled first token: 0 as in the text, 1 otherwise (Devlin et al. 2018,
    section 3.1, task 2)."""

    def __init__(self, model: ShapedTokenModel) -> None:
        super().__init__()
        size = model.config.hidden_size
        self.pooler = nn.Linear(size, size)
        self.classifier = nn.Linear(size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [batch, length, features] -> logits [batch, 2]."""
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))


def class_head(model: ShapedImageEncoder) -> nn.Linear:
    """features [batch, hidden] -> logits [batch, classes]."""
    return EmptyLinear(model.config.hidden_size, model.num_classes)

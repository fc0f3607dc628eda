"""The shapes and options of BERT and its relatives, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import NonNegative, Positive, PositiveFloat, configclass
from pretraining.models.config import TextConfig


@configclass
class EncoderConfig(TextConfig):
    """An encoder of tokens, with learned positions.

    norm_position: post is the published one; pre normalizes the input of each sublayer, and once more at the end
        (Xiong et al. 2020).
    initializer_range: standard deviation of the initial weights.
    activation: of the feed-forward and the head; gelu_tanh is GELU's approximation by tanh.
    segments: how many of them an embedding tells apart; with 1 all tokens are of the same, 0 has no such embedding.
    embedding_size: features of the embeddings, which a linear layer maps to hidden_size (Lan et al. 2019, "ALBERT",
        section 3.1); null means hidden_size, without such a layer.
    shared_layers: all layers are one block with the same parameters (ALBERT, section 3.1).
    """

    _: KW_ONLY
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: PositiveFloat = 1e-12
    initializer_range: PositiveFloat = 0.02
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    segments: NonNegative = 2
    embedding_size: Positive | None = None
    shared_layers: bool = False

    @property
    def embedding_features(self) -> int:
        """embedding_size, with null resolved."""
        return self.embedding_size or self.hidden_size


@configclass
class BertConfig(EncoderConfig):
    """An encoder with two segments (Devlin et al. 2018)."""

    name: Literal["bert"]


@configclass
class RobertaConfig(EncoderConfig):
    """BERT without segments (Liu et al. 2019), as the authors' code has it. XLM-R is the same with another vocabulary
    (Conneau et al. 2019)."""

    name: Literal["roberta", "xlm_roberta"]
    _: KW_ONLY
    norm_eps: PositiveFloat = 1e-5
    segments: NonNegative = 0


@configclass
class AlbertConfig(EncoderConfig):
    """BERT with factorized embeddings and one block for all layers (Lan et al. 2019)."""

    name: Literal["albert"]
    _: KW_ONLY
    activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    embedding_size: Positive | None = 128
    shared_layers: bool = True

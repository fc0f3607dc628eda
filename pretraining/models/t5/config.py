"""The shapes and options of T5, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, configclass
from pretraining.models.config import TextConfig


@configclass
class T5Config(TextConfig):
    """An encoder and a decoder of the same shape. The defaults of the options are T5's (v1.0); v1.1 has
    activation=gated_gelu and tie_embeddings=false.

    max_seq_len: the most tokens that the encoder reads; what the decoder writes is sized by the objective.
    num_decoder_layers: blocks of the decoder; null means num_layers.
    head_dim: features of an attention head; null means hidden_size / num_heads.
    activation: relu, or gated_gelu, which has a gate.
    tie_embeddings: the head projects with the embedding's table, and logits are scaled by hidden_size ** -0.5.
    relative_attention_num_buckets: how many distances between tokens have a bias of their own.
    relative_attention_max_distance: beyond it all distances share one bucket.
    """

    name: Literal["t5"]
    _: KW_ONLY
    num_decoder_layers: Positive | None = None
    head_dim: Positive | None = None
    activation: Literal["relu", "gated_gelu"] = "relu"
    tie_embeddings: bool = True
    relative_attention_num_buckets: Positive = 32
    relative_attention_max_distance: Positive = 128

    @property
    def decoder_layers(self) -> int:
        """num_decoder_layers, with null resolved."""
        return self.num_decoder_layers or self.num_layers

    @property
    def attention_head_dim(self) -> int:
        """head_dim, with null resolved."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def mlp_dropout_rate(self) -> float:
        """mlp_dropout, with null resolved."""
        return self.dropout if self.mlp_dropout is None else self.mlp_dropout

    def problems(self) -> list[str]:
        problems = [] if self.head_dim else TextConfig.problems(self)
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4:
            problems.append(f"model.relative_attention_num_buckets={buckets} is not divisible by 4")
        if distance <= buckets // 2:
            problems.append(
                f"model.relative_attention_max_distance={distance} must be larger than half of "
                f"model.relative_attention_num_buckets={buckets}"
            )
        return problems

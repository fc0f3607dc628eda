"""The shapes and options of T5, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.common.fields import Fraction, Positive, PositiveFloat, configclass
from pretraining.models.base import head_faults


@configclass
class T5Config:
    """An encoder and a decoder of the same shape. The defaults of the options are T5's (v1.0).

    max_seq_len: tokens that the encoder reads. num_layers: of each stack; num_decoder_layers: null means as many.
    head_dim: null means hidden_size / num_heads. tie_embeddings: with it logits are scaled by hidden_size ** -0.5.
    T5 v1.1 has activation=gated_gelu and tie_embeddings=false. vocab_size, intermediate_size, init_from: as in
    GPTConfig.
    """

    name: Literal["t5"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    num_decoder_layers: Positive | None = None
    head_dim: Positive | None = None
    intermediate_size: Positive | None = None
    activation: Literal["relu", "gated_gelu"] = "relu"
    tie_embeddings: bool = True
    relative_attention_num_buckets: Positive = 32
    relative_attention_max_distance: Positive = 128
    norm_eps: PositiveFloat = 1e-6
    dropout: Fraction = 0.0
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def faults(self) -> list[str]:
        faults = [] if self.head_dim else head_faults(self.hidden_size, self.num_heads)
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or distance <= buckets // 2:
            faults.append(
                f"model.relative_attention_num_buckets={buckets} must be a multiple of 4, and half of it "
                f"less than model.relative_attention_max_distance={distance}"
            )
        return faults

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.t5.model import T5

        return T5(self, vocab_size, layers)

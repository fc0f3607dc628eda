"""The shapes and options of every model family, checked before torch is imported.

A family's module stands in a file of its own (see pretraining.models.MODELS); its config stands here so that a
config error comes at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipeline.config import Fraction, Positive, PositiveFloat, configclass

VOCABULARY_MULTIPLE = 128


def padded_vocabulary(vocab_size: int) -> int:
    """Rounded up so that it divides by any tensor-parallel size: a checkpoint fits every layout."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@configclass
class GPTConfig:
    """A decoder. The defaults of the options are GPT-2's; the others make it a Llama-style one.

    vocab_size: null takes that of the prepared data. num_kv_heads: null means num_heads; fewer is grouped-query
    attention (Ainslie et al. 2023). intermediate_size: null means 4 x hidden_size. init_from: a Hugging Face folder
    whose weights a new run starts from.
    """

    name: Literal["gpt"]
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    max_seq_len: Positive
    vocab_size: Positive | None = None
    num_kv_heads: Positive | None = None
    intermediate_size: Positive | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: PositiveFloat = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: PositiveFloat = 1e-5
    activation: Literal["gelu_tanh", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tied_head: bool = True
    dropout: Fraction = 0.0
    initializer_range: PositiveFloat = 0.02
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def faults(self) -> list[str]:
        faults = head_faults(self.hidden_size, self.num_heads)
        if self.num_heads % self.kv_heads:
            faults.append(f"model.num_kv_heads={self.kv_heads} does not divide model.num_heads={self.num_heads}")
        if self.positions == "rotary" and not faults and (self.hidden_size // self.num_heads) % 2:
            faults.append(f"model.positions=rotary needs an even head size, not {self.hidden_size // self.num_heads}")
        return faults

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.gpt import GPT

        return GPT(self, vocab_size, layers)


@configclass
class T5Config:
    """An encoder and a decoder of the same shape. The defaults of the options are T5's (v1.0).

    max_seq_len: tokens that the encoder reads. num_layers: of each stack; num_decoder_layers: null means as many.
    head_dim: null means hidden_size / num_heads. tied_head: with it logits are scaled by hidden_size ** -0.5.
    T5 v1.1 has activation=gated_gelu and tied_head=false. vocab_size, intermediate_size, init_from: as in GPTConfig.
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
    tied_head: bool = True
    relative_buckets: Positive = 32
    relative_max_distance: Positive = 128
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
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2:
            faults.append(f"model.relative_buckets={self.relative_buckets} must be a multiple of 4, and half of it "
                          f"less than model.relative_max_distance={self.relative_max_distance}")
        return faults

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.t5 import T5

        return T5(self, vocab_size, layers)


ModelConfig = Annotated[GPTConfig | T5Config, Field(discriminator="name")]


def head_faults(hidden_size: int, num_heads: int) -> list[str]:
    if hidden_size % num_heads == 0:
        return []
    return [f"model.num_heads={num_heads} does not divide model.hidden_size={hidden_size}"]



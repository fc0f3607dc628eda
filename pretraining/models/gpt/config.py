"""The shapes and options of GPT, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.common.fields import Fraction, Positive, PositiveFloat, configclass
from pretraining.models.base import head_faults


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
    rope_theta: PositiveFloat = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: PositiveFloat = 1e-5
    activation: Literal["gelu_tanh", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tie_embeddings: bool = True
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

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {
            "model.num_heads": self.num_heads,
            "model.num_kv_heads": self.kv_heads,
            "model.intermediate_size": self.mlp_size,
        }

    def build(self, vocab_size: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.gpt.model import GPT

        return GPT(self, vocab_size, layers)

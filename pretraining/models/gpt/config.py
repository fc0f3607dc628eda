"""The shapes and options of GPT, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from data_pipeline.common.fields import Positive, PositiveFloat, configclass, used_with
from pretraining.models.config import TextConfig


@configclass
class GPTConfig(TextConfig):
    """A decoder. The defaults of the options are GPT-2's; the others make it a Llama-style one.

    num_kv_heads: heads of keys and values; null means num_heads, fewer is grouped-query attention (Ainslie et al.
        2023).
    positions: learned, one vector for each of max_seq_len positions, or rotary.
    rope_theta: the longest wavelength of rotary positions, in units of 2 pi tokens.
    norm: layernorm or rmsnorm.
    norm_position: pre normalizes the input of each sublayer, and once more at the end; post, which is GPT-1's,
        normalizes what a sublayer has added to, and nothing at the end.
    activation: gelu_tanh, or swiglu, which has a gate.
    bias: whether linear layers and norms have one.
    tie_embeddings: the head projects with the embedding's table.
    initializer_range: standard deviation of the initial weights.
    """

    name: Literal["gpt"]
    _: KW_ONLY
    num_kv_heads: Positive | None = None
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: Annotated[PositiveFloat, used_with("positions", "rotary")] = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: PositiveFloat = 1e-5
    activation: Literal["gelu_tanh", "swiglu"] = "gelu_tanh"
    bias: bool = True
    tie_embeddings: bool = True
    initializer_range: PositiveFloat = 0.02

    @property
    def kv_heads(self) -> int:
        """num_kv_heads, with null resolved."""
        return self.num_kv_heads or self.num_heads

    def problems(self) -> list[str]:
        problems = TextConfig.problems(self)
        if self.num_heads % self.kv_heads:
            problems.append(f"model.num_heads={self.num_heads} is not divisible by model.num_kv_heads={self.kv_heads}")
        if self.positions == "rotary" and not problems and (self.hidden_size // self.num_heads) % 2:
            problems.append(
                f"model.positions=rotary needs an even head size, not {self.hidden_size // self.num_heads} "
                "(model.hidden_size / model.num_heads)"
            )
        return problems

    def split_over_ranks(self) -> dict[str, int]:
        return {**TextConfig.split_over_ranks(self), "model.num_kv_heads": self.kv_heads}

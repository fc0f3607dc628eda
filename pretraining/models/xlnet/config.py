"""The shapes and options of XLNet, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import NonNegative, PositiveFloat, configclass
from pretraining.models.config import TextConfig, without_tensor_parallelism


@configclass
class XLNetConfig(TextConfig):
    """An encoder with two streams: the content of tokens, and queries that know a place but not the token there.

    max_seq_len: the most tokens of a sequence, without those that only make memory.
    memory: positions before a sequence whose hidden states every block sees, without a gradient.
    initializer_range: standard deviation of the initial weights.
    """

    name: Literal["xlnet"]
    memory: NonNegative
    _: KW_ONLY
    norm_eps: PositiveFloat = 1e-12
    initializer_range: PositiveFloat = 0.02

    @property
    def mlp_dropout_rate(self) -> float:
        return self.dropout if self.mlp_dropout is None else self.mlp_dropout

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        return without_tensor_parallelism(self.name, tensor_parallel, "its two streams are not proven there")

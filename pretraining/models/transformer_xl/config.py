"""The shapes and options of Transformer-XL, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, PositiveFloat, configclass
from pretraining.models.config import TextConfig, without_tensor_parallelism


@configclass
class TransformerXLConfig(TextConfig):
    """A decoder that reads a sequence segment by segment, and remembers the segments before. The length of a
    segment is the objective's (objective.segment).

    memory: positions before a segment whose hidden states every block sees, without a gradient.
    untie_biases: each block has biases of content and position of its own, as the large model.
    initializer_range: standard deviation of the initial weights.
    """

    name: Literal["transformer_xl"]
    memory: Positive
    _: KW_ONLY
    untie_biases: bool = False
    norm_eps: PositiveFloat = 1e-5
    initializer_range: PositiveFloat = 0.02

    @property
    def mlp_dropout_rate(self) -> float:
        return self.dropout if self.mlp_dropout is None else self.mlp_dropout

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        return without_tensor_parallelism(self.name, tensor_parallel, "its memory is not proven there")

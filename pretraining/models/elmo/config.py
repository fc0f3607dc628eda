"""The shapes and options of ELMo, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from pydantic import Field

from data_pipeline.common.fields import Fraction, NonNegative, Positive, PositiveFloat, configclass
from pretraining.models.config import ModelConfig, without_tensor_parallelism

PUBLISHED_FILTERS = [(1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)]


@configclass
class ELMoConfig(ModelConfig):
    """Two language models, one for each direction, over one encoder of characters. The defaults are the published ones.

    num_layers: LSTMs of each direction.
    hidden_size: features of a token between the LSTMs, to which each one's output is projected.
    cell_size: features of an LSTM's cell.
    max_seq_len: the most tokens that the model reads at once.
    vocab_size: null takes that of the prepared data; a number must agree with it.
    character_size: features of a character.
    filters: width in characters and count of each convolution.
    highways: layers between the convolutions and their projection.
    clip: largest absolute value of a cell, and of its projection.
    dropout: rate of every LSTM's input, and of the last one's output.
    """

    name: Literal["elmo"]
    num_layers: Positive
    hidden_size: Positive
    cell_size: Positive
    max_seq_len: Positive
    _: KW_ONLY
    vocab_size: Positive | None = None
    character_size: Positive = 16
    filters: list[tuple[Positive, Positive]] = Field(default_factory=lambda: list(PUBLISHED_FILTERS))
    highways: NonNegative = 2
    clip: PositiveFloat = 3.0
    dropout: Fraction = 0.0

    def problems(self) -> list[str]:
        if not self.activation_checkpointing:
            return []
        return ["model.activation_checkpointing=true has no effect on model.name=elmo, which has no blocks to repeat"]

    def stated_outputs(self) -> dict[str, int]:
        return {} if self.vocab_size is None else {"model.vocab_size": self.vocab_size}

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        return without_tensor_parallelism(self.name, tensor_parallel, "an LSTM is not split")

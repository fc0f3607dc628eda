"""The shapes and options of the Transformer, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, PositiveFloat, configclass
from pretraining.models.config import TextConfig


@configclass
class TransformerConfig2017(TextConfig):
    """An encoder and a decoder as published in 2017: post-norm, ReLU, sines and cosines for positions, one table for
    both languages and the head.

    max_seq_len: the most tokens that the encoder reads or the decoder writes: positions are computed here, but have a
        table in transformers' counterpart.
    num_decoder_layers: blocks of the decoder; null means num_layers.
    norm_eps: added to the variance in every norm; 1e-5 is what transformers' counterpart has.
    """

    name: Literal["transformer"]
    _: KW_ONLY
    num_decoder_layers: Positive | None = None
    norm_eps: PositiveFloat = 1e-5

    @property
    def decoder_layers(self) -> int:
        """num_decoder_layers, with null resolved."""
        return self.num_decoder_layers or self.num_layers

    @property
    def longest_targets(self) -> int | None:
        return self.max_seq_len

    @property
    def attention_dropout_rate(self) -> float:
        """None unless given: section 5.4 has it after embeddings, attention and feed-forward."""
        return self.attention_dropout or 0.0

    def problems(self) -> list[str]:
        problems = TextConfig.problems(self)
        if self.hidden_size % 2:
            problems.append(f"model.hidden_size={self.hidden_size} is not divisible by 2: sines and cosines share it")
        return problems

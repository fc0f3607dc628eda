"""The shapes and options of MAE, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, configclass
from pretraining.models.vision import VisionConfig


@configclass
class MAEConfig(VisionConfig):
    """A masked autoencoder (He et al. 2021): the encoder of a ViT with a class token, and a light decoder.

    decoder_num_layers, decoder_hidden_size, decoder_num_heads: the decoder's shape; its feed-forward has 4 x
        decoder_hidden_size features.
    """

    name: Literal["mae"]
    _: KW_ONLY
    decoder_num_layers: Positive = 8
    decoder_hidden_size: Positive = 512
    decoder_num_heads: Positive = 16

    def problems(self) -> list[str]:
        problems = VisionConfig.problems(self)
        size, heads = self.decoder_hidden_size, self.decoder_num_heads
        if size % heads:
            problems.append(f"model.decoder_hidden_size={size} is not divisible by model.decoder_num_heads={heads}")
        if size % 4:  # half of the features for the row, half for the column, each of sines and cosines
            problems.append(f"model.decoder_hidden_size={size} is not divisible by 4")
        return problems

    def split_over_ranks(self) -> dict[str, int]:
        return {**VisionConfig.split_over_ranks(self), "model.decoder_num_heads": self.decoder_num_heads}

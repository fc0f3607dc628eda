"""What the configs of the vision families share; free of torch."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Fraction, Positive, configclass
from pretraining.models.config import TransformerConfig
from pretraining.patches import PatchGrid


@configclass
class VisionConfig(TransformerConfig):
    """A model of square images in patches.

    image_size, patch_size: pixels along one side.
    positions: learned, or fixed two-dimensional sines and cosines.
    drop_path: the rate of the last block, growing from 0 at the first (stochastic depth, Huang et al. 2016).
    """

    image_size: Positive
    patch_size: Positive
    _: KW_ONLY
    positions: Literal["learned", "sinusoidal"] = "learned"
    drop_path: Fraction = 0.0

    @property
    def attention_dropout_rate(self) -> float:
        """None unless given: dropout follows every dense layer but queries, keys and values (Dosovitskiy et al. 2020,
        appendix B.1)."""
        return self.attention_dropout or 0.0

    @property
    def mlp_dropout_rate(self) -> float:
        return self.dropout if self.mlp_dropout is None else self.mlp_dropout

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.image_size, self.patch_size)

    @property
    def length(self) -> int:
        """Of the sequence that the first block sees: the patches, and a class token where there is one."""
        return self.grid.patches + 1

    def problems(self) -> list[str]:
        problems = TransformerConfig.problems(self)
        if self.image_size % self.patch_size:
            problems.append(
                f"model.image_size={self.image_size} is not divisible by model.patch_size={self.patch_size}"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 4:
            problems.append(f"model.positions=sinusoidal: model.hidden_size={self.hidden_size} is not divisible by 4")
        return problems

"""What the configs of the vision families share."""

from __future__ import annotations

from typing import Literal

from data_pipeline.common.fields import Fraction, Positive, PositiveFloat, configclass
from pretraining.models.base import head_faults
from pretraining.patches import PatchGrid


@configclass
class VisionConfig:
    """What the vision families share: square images of image_size x image_size pixels in patches.

    intermediate_size: null means 4 x hidden_size. drop_path: the rate of the last block, growing from 0 at the first
    (stochastic depth, Huang et al. 2016).
    """

    name: str
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    image_size: Positive
    patch_size: Positive
    intermediate_size: Positive | None = None
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm_eps: PositiveFloat = 1e-6
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    activation_checkpointing: bool = False
    init_from: str | None = None

    @property
    def mlp_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.image_size, self.patch_size)

    def split_over_ranks(self) -> dict[str, int]:
        """What tensor parallelism divides."""
        return {"model.num_heads": self.num_heads, "model.intermediate_size": self.mlp_size}

    @property
    def length(self) -> int:
        """Of the sequence that the first block sees."""
        return self.grid.patches + 1

    def faults(self) -> list[str]:
        faults = head_faults(self.hidden_size, self.num_heads)
        if self.image_size % self.patch_size:
            faults.append(f"model.patch_size={self.patch_size} does not divide model.image_size={self.image_size}")
        if self.positions == "sinusoidal" and self.hidden_size % 4:
            faults.append(
                f"model.positions=sinusoidal needs a model.hidden_size that divides by 4, not {self.hidden_size}"
            )
        return faults

"""The shapes and options of VIT, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.common.fields import Positive, configclass
from pretraining.models.vision import VisionConfig


@configclass
class ViTConfig(VisionConfig):
    """An image classifier. num_classes: null takes that of the prepared data. pooling: the class token's output, or
    the mean over the patches, without a class token (Beyer et al. 2022)."""

    name: Literal["vit"]
    num_classes: Positive | None = None
    pooling: Literal["cls", "mean"] = "cls"

    @property
    def length(self) -> int:
        return self.grid.patches + (self.pooling == "cls")

    def build(self, num_classes: int, layers: Any) -> Any:
        """The torch module, its weights still empty."""
        from pretraining.models.vit.model import ViT

        return ViT(self, num_classes, layers)

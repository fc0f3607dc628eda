"""The shapes and options of ViT, checked before torch is imported."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from data_pipeline.common.fields import Positive, configclass
from pretraining.models.vision import VisionConfig


@configclass
class ViTConfig(VisionConfig):
    """An image encoder.

    num_classes: null takes that of the prepared data; a number must agree with it.
    pooling: cls takes the class token's output, mean the mean over the patches, without a class token (Beyer et al.
        2022).
    """

    name: Literal["vit"]
    _: KW_ONLY
    num_classes: Positive | None = None
    pooling: Literal["cls", "mean"] = "cls"

    def stated_outputs(self) -> dict[str, int]:
        return {} if self.num_classes is None else {"model.num_classes": self.num_classes}

    @property
    def length(self) -> int:
        return self.grid.patches + (self.pooling == "cls")

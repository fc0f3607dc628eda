"""The shapes and options of MAE, checked before torch is imported."""

from __future__ import annotations

from typing import Any, Literal

from data_pipeline.common.fields import Positive, configclass
from pretraining.models.vision import VisionConfig


@configclass
class MAEConfig(VisionConfig):
    """A masked autoencoder (He et al. 2021): the encoder of a ViT with a class token, and a light decoder."""

    name: Literal["mae"]
    decoder_num_layers: Positive = 8
    decoder_hidden_size: Positive = 512
    decoder_num_heads: Positive = 16

    def faults(self) -> list[str]:
        faults = VisionConfig.faults(self)
        if self.decoder_hidden_size % self.decoder_num_heads:
            faults.append(
                f"model.decoder_num_heads={self.decoder_num_heads} does not divide "
                f"model.decoder_hidden_size={self.decoder_hidden_size}"
            )
        if self.decoder_hidden_size % 4:
            faults.append(f"model.decoder_hidden_size={self.decoder_hidden_size} does not divide by 4")
        return faults

    def split_over_ranks(self) -> dict[str, int]:
        return VisionConfig.split_over_ranks(self) | {"model.decoder_num_heads": self.decoder_num_heads}

    def build(self, num_classes: int, layers: Any) -> Any:
        """The torch module, its weights still empty. num_classes is not used: no label takes part."""
        from pretraining.models.mae.model import MAE

        return MAE(self, layers)

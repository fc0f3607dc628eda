"""Models with the heads of the objective that usually trains them, where a test needs no objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.init_from import HuggingFaceFolder
from pretraining.models.config import TransformerConfig
from pretraining.models.heads import MaskedTokenHead, PairHead, attach_heads, class_head, token_head
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.parallel.layers import Layers, PlainLayers


@dataclass
class UsualHeads:
    """pairs: BERT has a pair head."""

    pairs: bool = True

    def heads(self, model: Any, layers: Layers) -> Mapping[str, nn.Module]:
        name = model.config.name
        if name in ("gpt", "t5"):
            return {"head": token_head(model, layers)}
        if name == "bert":
            heads: dict[str, nn.Module] = {"head": MaskedTokenHead(model, layers)}
            return {**heads, "pair_head": PairHead(model)} if self.pairs else heads
        return {"head": class_head(model)} if name == "vit" else {}


def build(config: TransformerConfig, outputs: int, layers: Layers | None = None, pairs: bool = True) -> Any:
    """The model, its weights still empty. outputs: as for build_model."""
    layers = layers or PlainLayers()
    return attach_heads(build_model(config, outputs, layers), UsualHeads(pairs), layers)


def open_folder(
    folder: Path, config: TransformerConfig, outputs: int, tokenizer: Tokenizer | None = None, pairs: bool = True
) -> HuggingFaceFolder:
    """A Hugging Face folder that such a model starts from, as checked."""
    return HuggingFaceFolder(str(folder), shapes_of(config, outputs, UsualHeads(pairs)), outputs, tokenizer)

"""Models with the heads of the objective that usually trains them, where a test needs no objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.hub.init_from import HuggingFaceFolder
from pretraining.models.bert.config import EncoderConfig
from pretraining.models.config import TransformerConfig
from pretraining.models.heads import attach_heads
from pretraining.models.registry import build_model
from pretraining.models.shapes import shapes_of
from pretraining.models.vision import VisionConfig
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import Layers, PlainLayers
from pretraining.run.prepared import vocabulary_of


@dataclass
class UsualHeads:
    """pairs: BERT has a pair head."""

    pairs: bool = True

    def heads(self, model: Any, layers: Layers) -> Mapping[str, nn.Module]:
        name = model.config.name
        if name in ("gpt", "t5", "transformer"):
            return {"head": model.make_token_head(layers)}
        if isinstance(model.config, EncoderConfig):
            heads: dict[str, nn.Module] = {"head": model.make_masked_head(layers)}
            return {**heads, "pair_head": model.make_pair_head()} if self.pairs else heads
        return {"head": model.make_class_head()} if name == "vit" else {}


def vocabulary_for(config: TransformerConfig, outputs: int) -> Vocabulary:
    """outputs: tokens of a text model, classes of an image model."""
    return Vocabulary(classes=outputs) if isinstance(config, VisionConfig) else Vocabulary(outputs, {"pad": 1})


def build(config: TransformerConfig, outputs: int, layers: Layers | None = None, pairs: bool = True) -> Any:
    """The model, its weights still empty. outputs: as for vocabulary_for."""
    layers = layers or PlainLayers()
    return attach_heads(build_model(config, vocabulary_for(config, outputs), layers), UsualHeads(pairs), layers)


def open_folder(
    folder: Path, config: TransformerConfig, outputs: int, tokenizer: Tokenizer | None = None, pairs: bool = True
) -> HuggingFaceFolder:
    """A Hugging Face folder that such a model starts from, as checked."""
    vocabulary = vocabulary_for(config, outputs) if tokenizer is None else vocabulary_of(tokenizer, ())
    shapes = shapes_of(config, vocabulary, UsualHeads(pairs))
    return HuggingFaceFolder(str(folder), shapes, outputs, tokenizer)

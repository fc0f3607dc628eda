"""The adapter's Hugging Face counterpart: its own class, whose names the weights have already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from data_pipeline.tokenizers.export import Frame
from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.model import Adapter, TextAdapter
from pretraining.models.huggingface.settings import SPECIAL_IDS, model_class, special_settings
from pretraining.models.huggingface_map import Inputs, Values, probe_images, probe_rows, require_model_type
from pretraining.models.roles import Role
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without

FRAMES = {
    Role.TOKEN_ENCODER: Frame("cls $A sep", "cls $A sep $B:1 sep:1", token_types=True),
    Role.ENCODER_DECODER: Frame("$A eos", "$A eos $B eos"),
    Role.DECODER: Frame("$A", "$A $B"),
}
OURS = "network."  # before every name of transformers'
# What a config.json says that decides neither shapes nor what is computed, or that the prepared data and the run decide
NOT_COMPARED = frozenset(SPECIAL_IDS) | {
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "vocab_size",
    "use_cache",
}


class Counterpart:
    """A HuggingFaceFamily for one config."""

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config

    @property
    def architectures(self) -> tuple[str, ...]:
        return (self.config.architecture,)

    @property
    def frame(self) -> Frame | None:
        role = facts_of(self.config.architecture).role
        return None if role is None else FRAMES.get(role)

    def huggingface_config(self, model: Adapter, special_ids: Mapping[str, int]) -> Values:
        found: Values = model.network.config.to_dict() | special_settings(self.config, special_ids)
        if isinstance(model, TextAdapter):
            found["vocab_size"] = model.vocab_size
        return {**found, "architectures": [self.config.architecture], "dtype": "float32"}

    def from_huggingface_config(self, values: Values) -> Values:
        """Every key of the class that decides what is computed, as `settings.KEY`."""
        config_class: Any = model_class(self.config.architecture).config_class
        family = f"huggingface with model.architecture={self.config.architecture}"
        require_model_type(values, family, (config_class.model_type,))
        given = {key: value for key, value in values.items() if key not in ("architectures", "dtype")}
        found: Values = config_class(**given).to_dict()
        return {f"settings.{key}": value for key, value in found.items() if key not in NOT_COMPARED}

    def weight_map(self, model: Adapter) -> list[WeightMap]:
        entries = []
        for name, _ in model.network.named_parameters():
            by_token = model.padded_rows(OURS + name) > 0 or name in _tables(model)
            entries.append(
                vocabulary(OURS + name, name, cast(TextAdapter, model).vocab_size)
                if by_token
                else WeightMap(OURS + name, name)
            )
        return entries

    def spellings(self, name: str) -> list[str]:
        return with_and_without(name, model_class(self.config.architecture).base_model_prefix)

    def probe_inputs(self, model: Adapter, rng: np.random.Generator) -> list[Inputs]:
        if model.facts.role is Role.IMAGE_ENCODER:
            return [{"pixel_values": probe_images(model.config.image_size, rng)}]
        length, size = model.config.max_seq_len, model.vocabulary.size
        rows = probe_rows(length, size, rng)
        if model.facts.role is Role.ENCODER_DECODER:
            targets = probe_rows(length, size, rng)
            return [{"input_ids": a, "decoder_input_ids": b} for a, b in zip(rows, targets, strict=True)]
        if "pair_head" not in model.head_names:
            return [{"input_ids": row} for row in rows]
        return [
            {"input_ids": row, "token_type_ids": (torch.arange(row.shape[1]) > row.shape[1] // 2).long()[None]}
            for row in rows
        ]

    def probe_outputs(self, model: Any, inputs: Inputs, values: Values) -> Inputs:
        if model.facts.role is Role.IMAGE_ENCODER:
            return {"logits": model.head(model(inputs["pixel_values"]))}
        hidden = model(*inputs.values())
        if model.facts.role is not Role.TOKEN_ENCODER:
            return {"logits": model.head.logits(hidden)}
        tokens = inputs["input_ids"]
        logits = model.head.logits(hidden, torch.arange(tokens.shape[1]).expand_as(tokens))
        if model.facts.pair_logits is None:
            return {"logits": logits}
        return {"prediction_logits": logits} | (
            {model.facts.pair_logits: model.pair_head(hidden)} if "pair_head" in model.head_names else {}
        )


def _tables(model: Adapter) -> set[str]:
    """The names, as transformers has them, of what has a row for each token."""
    if not isinstance(model, TextAdapter):
        return set()
    tables = model.vocabulary_tables()
    return {name for name, p in model.network.named_parameters() if any(p is table for table in tables)}

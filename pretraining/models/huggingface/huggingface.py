"""The adapter's Hugging Face counterpart: its own class, whose names the weights have already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from data_pipeline.tokenizers.export import Frame
from pretraining.models.huggingface import tracing
from pretraining.models.huggingface.architectures import facts_of
from pretraining.models.huggingface.config import HuggingFaceConfig
from pretraining.models.huggingface.model import (
    Adapter,
    Decoder,
    EncoderDecoder,
    ImageEncoder,
    TextAdapter,
    TokenEncoder,
)
from pretraining.models.huggingface.network import empty_network
from pretraining.models.huggingface.settings import (
    PROBE,
    SPECIAL_IDS,
    VOCABULARY_SIZES,
    keys_of,
    model_class,
    set_by_ours,
    special_settings,
)
from pretraining.models.huggingface_map import Inputs, Values, probe_images, probe_pairs, probe_rows, require_model_type
from pretraining.models.roles import Role
from pretraining.models.weight_map import WeightMap, tiled, vocabulary, with_and_without

FRAMES = {
    Role.TOKEN_ENCODER: Frame("cls $A sep", "cls $A sep $B:1 sep:1", token_types=True),
    Role.ENCODER_DECODER: Frame("$A eos", "$A eos $B eos"),
    Role.DECODER: Frame("$A", "$A $B"),
}
POSITION_TABLE = "position_embeddings.weight"
OURS = "network."  # before every name of transformers'
# What a config.json says that decides neither shapes nor what is computed, or that the prepared data and the run decide
NOT_COMPARED = frozenset((*SPECIAL_IDS, *VOCABULARY_SIZES)) | {
    "architectures",
    "transformers_version",
    "dtype",
    "torch_dtype",
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
            found |= {name: model.vocab_size for name in VOCABULARY_SIZES if name in found}
        return {**found, "architectures": [self.config.architecture], "dtype": "float32"}

    def from_huggingface_config(self, values: Values) -> Values:
        """Every key of the class that decides what is computed, as `settings.KEY`; of a folder of its short class those
        that both have."""
        config_class: Any = model_class(self.config.architecture).config_class
        short, keys, own = facts_of(self.config.architecture).short, keys_of(self.config), config_class.model_type
        readable = (own,) if short is None else (own, short.model_type)
        require_model_type(values, f"huggingface with model.architecture={self.config.architecture}", readable)
        given = {keys[key]: value for key, value in values.items() if key in keys}
        if values["model_type"] == own:
            with tracing.refusing("its config.json has values that transformers does not take"):
                found: Values = config_class(**given).to_dict()
        else:
            # of a network: some classes write into their config
            found = empty_network(self.config, PROBE, torch.device("meta")).config.to_dict()
            found |= {key: value for key, value in given.items() if key in found}
        free = NOT_COMPARED | set_by_ours(keys).keys()
        return {f"settings.{key}": value for key, value in found.items() if key not in free}

    def weight_map(self, model: Adapter) -> list[WeightMap]:
        tables = model.vocabulary_tables() if isinstance(model, TextAdapter) else []
        short = model.facts.short
        entries = []
        for name, parameter in model.network.named_parameters():
            if any(parameter is table for table in tables):
                entries.append(vocabulary(OURS + name, name, model.vocabulary.size))
            elif short is not None and name.endswith(POSITION_TABLE):
                first = cast(TextAdapter, model).offset
                entries.append(tiled(OURS + name, name, len(parameter), first))
            else:
                entries.append(WeightMap(OURS + name, name))
        return entries

    def spellings(self, name: str) -> list[str]:
        prefix, short = (
            model_class(self.config.architecture).base_model_prefix,
            facts_of(self.config.architecture).short,
        )
        names = with_and_without(name, prefix)
        if short is None:
            return names
        for ours, theirs in ((f"{prefix}.", f"{short.prefix}."), *short.taken):
            name = name.replace(ours, theirs, 1)
        return [*names, *(other for other in with_and_without(name, short.prefix) if other not in names)]

    def probe_inputs(self, model: Adapter, rng: np.random.Generator) -> list[Inputs]:
        if model.facts.role is Role.IMAGE_ENCODER:
            return [{"pixel_values": probe_images(model.config.image_size, rng)}]
        length, size = model.config.max_seq_len, model.vocabulary.size
        if "pair_head" in model.head_names:
            return probe_pairs(length, size, rng)
        rows = probe_rows(length, size, rng)
        if model.facts.role is not Role.ENCODER_DECODER:
            return [{"input_ids": row} for row in rows]
        targets = probe_rows(length, size, rng)
        return [{"input_ids": a, "decoder_input_ids": b} for a, b in zip(rows, targets, strict=True)]

    def probe_outputs(self, model: Adapter, inputs: Inputs, values: Values) -> Inputs:
        outputs = model(*inputs.values())
        if isinstance(model, ImageEncoder):
            return {"logits": model.head(outputs)}
        if isinstance(model, Decoder | EncoderDecoder):
            return {"logits": model.head.logits(outputs)}
        assert isinstance(model, TokenEncoder)
        tokens = inputs["input_ids"]
        logits = model.head.logits(outputs, torch.arange(tokens.shape[1]).expand_as(tokens))
        if model.facts.pair_logits is None:
            return {"logits": logits}
        return {"prediction_logits": logits} | (
            {model.facts.pair_logits: model.pair_head(outputs)} if "pair_head" in model.head_names else {}
        )

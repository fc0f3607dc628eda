"""ELECTRA's generator as transformers' ElectraForMaskedLM."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pretraining.models.electra import huggingface as discriminator
from pretraining.models.electra.model import Electra
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values
from pretraining.models.weight_map import WeightMap, vocabulary, with_parts

GENERATOR = ConfigMap(
    architecture="ElectraForMaskedLM",
    model_type="electra",
    keys=[
        Key("generator_num_layers", "num_hidden_layers", resolved="generator_layers"),
        Key("generator_hidden_size", "hidden_size"),
        Key("generator_num_heads", "num_attention_heads", resolved="generator_heads"),
        Key("generator_intermediate_size", "intermediate_size", resolved="generator_mlp_size"),
        *discriminator.SHARED_KEYS,
    ],
    only=discriminator.ONLY,
    checked=discriminator.CHECKED,
    written=discriminator.WRITTEN,
    ours={"name": "electra"},
)
architectures = (GENERATOR.architecture,)
frame = discriminator.frame
probe_inputs = discriminator.probe_inputs
spellings = discriminator.spellings


def huggingface_config(model: Electra, special_ids: Mapping[str, int]) -> Values:
    return discriminator.written(GENERATOR, model, special_ids)


def from_huggingface_config(values: Values) -> Values:
    return discriminator.read(GENERATOR, values)


def weight_map(model: Electra) -> list[WeightMap]:
    """Of the generator, with the embeddings that both share."""
    return [
        *discriminator.encoder_map(model, "generator", model.generator),
        vocabulary("head.decoder.bias", "generator_lm_head.bias", model.vocab_size),
        *with_parts("head.transform", "generator_predictions.dense"),
        *with_parts("head.norm", "generator_predictions.LayerNorm"),
    ]


def probe_outputs(model: Electra, inputs: Inputs, values: Values) -> Inputs:
    tokens = inputs["input_ids"]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    hidden = model.generate(tokens, inputs["token_type_ids"], positions)
    return {"logits": model.head.logits(hidden, positions)}

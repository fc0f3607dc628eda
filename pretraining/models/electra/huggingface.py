"""ELECTRA's discriminator as transformers' ElectraForPreTraining; `huggingface_generator` has the generator, which
stands in a folder of its own within the discriminator's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from data_pipeline.tokenizers.export import Frame
from pretraining.models.bert.huggingface import BLOCK
from pretraining.models.electra.config import SEGMENTS
from pretraining.models.electra.model import Electra, Encoder
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_pairs, require_model_type
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without, with_parts

SHARED_KEYS = (
    Key("embedding_size", "embedding_size"),
    Key("max_seq_len", "max_position_embeddings"),
    Key("norm_eps", "layer_norm_eps", default=1e-12),
)
ONLY = {"hidden_act": ("gelu",), "type_vocab_size": (SEGMENTS,), "tie_word_embeddings": (True,)}
CHECKED = {"is_decoder": (False,), "position_embedding_type": ("absolute",)}
WRITTEN = {
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "initializer_range": "initializer_range",
}
DISCRIMINATOR = ConfigMap(
    architecture="ElectraForPreTraining",
    model_type="electra",
    keys=[
        Key("num_layers", "num_hidden_layers"),
        Key("hidden_size", "hidden_size"),
        Key("num_heads", "num_attention_heads"),
        Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
        *SHARED_KEYS,
    ],
    only=ONLY,
    checked=CHECKED,
    written=WRITTEN,
    ours={"name": "electra"},
)
architectures = (DISCRIMINATOR.architecture,)
frame = Frame("cls $A sep", "cls $A sep $B:1 sep:1", token_types=True)


def huggingface_config(model: Electra, special_ids: Mapping[str, int]) -> Values:
    return written(DISCRIMINATOR, model, special_ids)


def from_huggingface_config(values: Values) -> Values:
    return read(DISCRIMINATOR, values)


def weight_map(model: Electra) -> list[WeightMap]:
    """Of the discriminator, with the embeddings that both share."""
    return [
        *encoder_map(model, "discriminator", model.discriminator),
        *with_parts("detection_head.transform", "discriminator_predictions.dense"),
        *with_parts("detection_head.classifier", "discriminator_predictions.dense_prediction"),
    ]


def spellings(name: str) -> list[str]:
    return with_and_without(name, "electra")


def probe_inputs(model: Electra, rng: np.random.Generator) -> list[Inputs]:
    return probe_pairs(model.config.max_seq_len, model.vocab_size, rng)


def probe_outputs(model: Electra, inputs: Inputs, values: Values) -> Inputs:
    tokens = inputs["input_ids"]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return {"logits": model.detection_head(model.discriminate(tokens, inputs["token_type_ids"], positions))}


def written(counterpart: ConfigMap, model: Electra, special_ids: Mapping[str, int]) -> Values:
    """config.json of one of the two folders."""
    return {
        **counterpart.export(model.config),
        "vocab_size": model.vocab_size,
        "pad_token_id": special_ids["pad"],
    }


def read(counterpart: ConfigMap, values: Values) -> Values:
    """Our keys of one of the two folders."""
    require_model_type(values, "electra", ("electra",))
    return {**counterpart.restore(values), "vocab_size": values["vocab_size"]}


def encoder_map(model: Electra, ours: str, encoder: Encoder) -> list[WeightMap]:
    """The shared embeddings, and the blocks of the encoder that our model calls `ours`."""
    entries = [
        vocabulary("token_embedding.weight", "electra.embeddings.word_embeddings.weight", model.vocab_size),
        WeightMap("position_embedding.weight", "electra.embeddings.position_embeddings.weight"),
        WeightMap("segment_embedding.weight", "electra.embeddings.token_type_embeddings.weight"),
        *with_parts("embedding_norm", "electra.embeddings.LayerNorm"),
    ]
    if encoder.projection is not None:
        entries += with_parts(f"{ours}.projection", "electra.embeddings_project")
    for i in range(len(encoder.blocks)):
        for part, theirs in BLOCK.items():
            entries += with_parts(f"{ours}.blocks.{i}.{part}", f"electra.encoder.layer.{i}.{theirs}")
    return entries

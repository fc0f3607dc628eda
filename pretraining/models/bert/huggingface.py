"""BERT's Hugging Face counterparts: BertForPreTraining with a pair head, BertForMaskedLM without one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import spelled
from data_pipeline.tokenizers.export import Frame
from pretraining.models.bert.config import EncoderConfig
from pretraining.models.bert.model import BERT
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_pairs, require_model_type
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without, with_parts

ACTIVATION = Key("activation", "hidden_act", default="gelu", spelled={"gelu": "gelu", "gelu_tanh": "gelu_new"})
PRETRAINING = ConfigMap(
    architecture="BertForPreTraining",
    model_type="bert",
    keys=[
        Key("num_layers", "num_hidden_layers"),
        Key("hidden_size", "hidden_size"),
        Key("num_heads", "num_attention_heads"),
        Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
        Key("max_seq_len", "max_position_embeddings"),
        Key("norm_eps", "layer_norm_eps", default=1e-12),
        ACTIVATION,
        Key("segments", "type_vocab_size", default=2),
    ],
    only={"tie_word_embeddings": (True,)},
    checked={"is_decoder": (False,), "position_embedding_type": ("absolute",)},
    written={
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout_rate",
        "initializer_range": "initializer_range",
    },
    ours={"name": "bert", "norm_position": "post"},
)
MASKED_LM = replace(PRETRAINING, architecture="BertForMaskedLM")
architectures = (PRETRAINING.architecture, MASKED_LM.architecture)
frame = Frame("cls $A sep", "cls $A sep $B:1 sep:1", token_types=True)

SHOWN = 4  # values of an option that a message lists at most

BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def huggingface_config(model: BERT, special_ids: Mapping[str, int]) -> Values:
    require_options(model.config, embedding_size=(None,), shared_layers=(False,), segments=range(1, 1 << 20))
    counterpart = PRETRAINING if "pair_head" in model.head_names else MASKED_LM
    return {
        **counterpart.export(model.config),
        "vocab_size": model.vocab_size,
        "pad_token_id": special_ids["pad"],
    }


def require_options(config: EncoderConfig, **supported: Collection[object]) -> None:
    """Raises InputError for an option that transformers' model of this name does not have."""
    for key, values in {"norm_position": ("post",), **supported}.items():
        value = getattr(config, key)
        if value not in values:
            only = f", only {' or '.join(map(spelled, values))}" if len(values) < SHOWN else ""
            raise InputError(f"model.{key}={spelled(value)} is not supported by Hugging Face's {config.name}{only}")


def from_huggingface_config(values: Values) -> Values:
    require_model_type(values, "bert", ("bert",))
    return {**PRETRAINING.restore(values), "vocab_size": values["vocab_size"]}


def weight_map(model: BERT) -> list[WeightMap]:
    entries = [
        *embeddings_map(model, "bert.embeddings"),
        WeightMap("position_embedding.weight", "bert.embeddings.position_embeddings.weight"),
        WeightMap("segment_embedding.weight", "bert.embeddings.token_type_embeddings.weight"),
        *layers_map(model, "bert.encoder.layer"),
    ]
    if "head" in model.head_names:
        entries.append(vocabulary("head.decoder.bias", "cls.predictions.bias", model.vocab_size))
        entries += with_parts("head.transform", "cls.predictions.transform.dense")
        entries += with_parts("head.norm", "cls.predictions.transform.LayerNorm")
    if "pair_head" in model.head_names:
        entries += with_parts("pair_head.pooler", "bert.pooler.dense")
        entries += with_parts("pair_head.classifier", "cls.seq_relationship")
    return entries


def embeddings_map(model: BERT, theirs: str) -> list[WeightMap]:
    """Of tokens and the norm."""
    table = vocabulary("token_embedding.weight", f"{theirs}.word_embeddings.weight", model.vocab_size)
    return [table, *with_parts("embedding_norm", f"{theirs}.LayerNorm")]


def layers_map(model: BERT, theirs: str) -> list[WeightMap]:
    """Of every layer, as BERT's and RoBERTa's are named below `theirs`."""
    layers = range(model.config.num_layers)
    pairs = [(f"blocks.{i}.{ours}", f"{theirs}.{i}.{name}") for i in layers for ours, name in BLOCK.items()]
    return [entry for ours, name in pairs for entry in with_parts(ours, name)]


def spellings(name: str) -> list[str]:
    """The oldest folders call the weight and bias of a norm gamma and beta."""
    names = with_and_without(name, "bert")
    old = [n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in names]
    return [*names, *old]


def probe_inputs(model: BERT, rng: np.random.Generator) -> list[Inputs]:
    return probe_pairs(model.config.max_seq_len, model.vocab_size, rng)


def probe_outputs(model: BERT, inputs: Inputs, values: Values) -> Inputs:
    tokens = inputs["input_ids"]
    hidden = model(tokens, inputs["token_type_ids"])
    logits = model.head.logits(hidden, torch.arange(tokens.shape[1]).expand_as(tokens))
    if "pair_head" not in model.head_names:
        return {"logits": logits}
    return {"prediction_logits": logits, "seq_relationship_logits": model.pair_head(hidden)}

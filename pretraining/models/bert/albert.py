"""ALBERT's Hugging Face counterparts: AlbertForPreTraining with a pair head, AlbertForMaskedLM without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pretraining.models.bert import huggingface as bert
from pretraining.models.bert.huggingface import ACTIVATION, embeddings_map, require_options
from pretraining.models.bert.model import BERT
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, require_model_type
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without, with_parts

PRETRAINING = ConfigMap(
    architecture="AlbertForPreTraining",
    model_type="albert",
    keys=[
        Key("num_layers", "num_hidden_layers"),
        Key("hidden_size", "hidden_size"),
        Key("num_heads", "num_attention_heads"),
        Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
        Key("max_seq_len", "max_position_embeddings"),
        Key("norm_eps", "layer_norm_eps", default=1e-12),
        Key("segments", "type_vocab_size", default=2),
        Key("embedding_size", "embedding_size", default=128),
        ACTIVATION,
    ],
    only={"num_hidden_groups": (1,), "inner_group_num": (1,), "tie_word_embeddings": (True,)},
    checked={"position_embedding_type": ("absolute",)},
    written={
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout_rate",
        "initializer_range": "initializer_range",
    },
    ours={"name": "albert", "norm_position": "post", "shared_layers": True},
)
MASKED_LM = replace(PRETRAINING, architecture="AlbertForMaskedLM")
architectures = (PRETRAINING.architecture, MASKED_LM.architecture)
frame, probe_inputs = bert.frame, bert.probe_inputs

LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
BLOCK = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "mlp.up": "ffn",
    "mlp.down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}


def huggingface_config(model: BERT, special_ids: Mapping[str, int]) -> Values:
    require_options(model.config, shared_layers=(True,), segments=range(1, 1 << 20))
    require_options(model.config, embedding_size=(model.config.embedding_features,))
    counterpart = PRETRAINING if "pair_head" in model.head_names else MASKED_LM
    ids = {f"{theirs}_token_id": special_ids[ours] for ours, theirs in (("cls", "bos"), ("sep", "eos"), ("pad", "pad"))}
    return {**counterpart.export(model.config), "vocab_size": model.vocab_size, **ids}


def from_huggingface_config(values: Values) -> Values:
    require_model_type(values, "albert", ("albert",))
    return {**PRETRAINING.restore(values), "vocab_size": values["vocab_size"]}


def weight_map(model: BERT) -> list[WeightMap]:
    entries = [
        *embeddings_map(model, "albert.embeddings"),
        WeightMap("position_embedding.weight", "albert.embeddings.position_embeddings.weight"),
        WeightMap("segment_embedding.weight", "albert.embeddings.token_type_embeddings.weight"),
        *with_parts("embedding_map", "albert.encoder.embedding_hidden_mapping_in"),
    ]
    for ours, theirs in BLOCK.items():
        entries += with_parts(f"blocks.0.{ours}", f"{LAYER}.{theirs}")
    if "head" in model.head_names:
        entries.append(vocabulary("head.decoder.bias", "predictions.bias", model.vocab_size))
        entries += with_parts("head.transform", "predictions.dense")
        entries += with_parts("head.norm", "predictions.LayerNorm")
    if "pair_head" in model.head_names:
        entries += with_parts("pair_head.pooler", "albert.pooler")
        entries += with_parts("pair_head.classifier", "sop_classifier.classifier")
    return entries


def spellings(name: str) -> list[str]:
    return with_and_without(name, "albert")


def probe_outputs(model: BERT, inputs: Inputs, values: Values) -> Inputs:
    found = bert.probe_outputs(model, inputs, values)
    return {"sop_logits" if name == "seq_relationship_logits" else name: t for name, t in found.items()}

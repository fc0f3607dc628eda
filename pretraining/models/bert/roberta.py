"""RoBERTa's and XLM-R's Hugging Face counterparts: RobertaForMaskedLM and XLMRobertaForMaskedLM.

Positions are counted from the id of the padding + 1 there (Liu et al.'s fairseq does so): the rows of the table before
that are zeros, and not read but by padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.export import Frame
from pretraining.models.bert.huggingface import ACTIVATION, embeddings_map, layers_map, require_options
from pretraining.models.bert.model import BERT
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_rows, require_model_type
from pretraining.models.weight_map import WeightMap, vocabulary, with_and_without, with_parts

ARCHITECTURES = {"roberta": "RobertaForMaskedLM", "xlm_roberta": "XLMRobertaForMaskedLM"}
MODEL_TYPES = {"roberta": "roberta", "xlm_roberta": "xlm-roberta"}
architectures = tuple(ARCHITECTURES.values())
frame = Frame("cls $A sep", "cls $A sep sep $B sep")


def _map(name: str) -> ConfigMap:
    return ConfigMap(
        architecture=ARCHITECTURES[name],
        model_type=MODEL_TYPES[name],
        keys=[
            Key("num_layers", "num_hidden_layers"),
            Key("hidden_size", "hidden_size"),
            Key("num_heads", "num_attention_heads"),
            Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
            Key("norm_eps", "layer_norm_eps", default=1e-12),
            ACTIVATION,
        ],
        only={"type_vocab_size": (1,), "tie_word_embeddings": (True,)},
        checked={"is_decoder": (False,), "position_embedding_type": ("absolute",)},
        written={
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout_rate",
            "initializer_range": "initializer_range",
        },
        ours={"name": name, "norm_position": "post"},
    )


def huggingface_config(model: BERT, special_ids: Mapping[str, int]) -> Values:
    config, pad = model.config, special_ids["pad"]
    require_options(config, embedding_size=(None,), shared_layers=(False,), segments=(0, 1))
    if "pair_head" in model.head_names:
        raise InputError(f"objective.pairing is not supported by Hugging Face's {config.name}, only none")
    ids = {f"{theirs}_token_id": special_ids[ours] for ours, theirs in (("cls", "bos"), ("sep", "eos"), ("pad", "pad"))}
    length = {"max_position_embeddings": config.max_seq_len + pad + 1}
    return {**_map(config.name).export(config), **length, "vocab_size": model.vocab_size, **ids}


def from_huggingface_config(values: Values) -> Values:
    names = {theirs: ours for ours, theirs in MODEL_TYPES.items()}
    require_model_type(values, "roberta", tuple(names))
    length = values["max_position_embeddings"] - values.get("pad_token_id", 1) - 1
    restored = _map(names[values["model_type"]]).restore(values)
    return {**restored, "max_seq_len": length, "vocab_size": values["vocab_size"]}


def weight_map(model: BERT) -> list[WeightMap]:
    before = model.vocabulary.special_ids["pad"] + 1

    def with_rows(table: Tensor) -> Tensor:
        return torch.cat([table.new_zeros(before, table.shape[1]), table])

    segment = "no_segment" if model.segment_embedding is None else "segment_embedding.weight"
    theirs = "roberta.embeddings"
    entries = [
        *embeddings_map(model, theirs),
        WeightMap("position_embedding.weight", f"{theirs}.position_embeddings.weight", with_rows, lambda t: t[before:]),
        WeightMap(segment, f"{theirs}.token_type_embeddings.weight", fixed_by="model.segments=0"),
        *layers_map(model, "roberta.encoder.layer"),
    ]
    if "head" in model.head_names:
        entries.append(vocabulary("head.decoder.bias", "lm_head.bias", model.vocab_size))
        entries += with_parts("head.transform", "lm_head.dense")
        entries += with_parts("head.norm", "lm_head.layer_norm")
    return entries


def spellings(name: str) -> list[str]:
    return with_and_without(name, "roberta")


def probe_inputs(model: BERT, rng: np.random.Generator) -> list[Inputs]:
    """A pad within a row would be read as padding, and not be counted as a position."""
    pad, left_out = model.vocabulary.special_ids["pad"], model.head.decoder.unused
    exported = model.vocab_size - sum(stop - start for start, stop in left_out)
    rows = probe_rows(model.config.max_seq_len, exported, rng)
    return [{"input_ids": torch.where(row == pad, (pad + 1) % exported, row)} for row in rows]


def probe_outputs(model: BERT, inputs: Inputs, values: Values) -> Inputs:
    tokens = inputs["input_ids"]
    return {"logits": model.head.logits(model(tokens), torch.arange(tokens.shape[1]).expand_as(tokens))}

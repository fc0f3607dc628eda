"""The Transformer's Hugging Face counterpart: MarianMTModel, whose attention has biases: 0 in an export."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.export import Frame
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_rows, require_model_type
from pretraining.models.transformer_2017.model import Transformer
from pretraining.models.weight_map import WeightMap, vocabulary, with_parts

NORM_EPS = 1e-5  # MarianMTModel's only one
MARIAN = ConfigMap(
    architecture="MarianMTModel",
    model_type="marian",
    keys=[
        Key("num_layers", "encoder_layers"),
        Key("hidden_size", "d_model"),
        Key("num_heads", "encoder_attention_heads"),
        Key("num_decoder_layers", "decoder_layers", resolved="decoder_layers"),
        Key("intermediate_size", "encoder_ffn_dim", resolved="mlp_size"),
        Key("max_seq_len", "max_position_embeddings"),
    ],
    only={
        "activation_function": ("relu",),
        "scale_embedding": (True,),
        "share_encoder_decoder_embeddings": (True,),
        "tie_word_embeddings": (True,),
    },
    written={
        "decoder_attention_heads": "num_heads",
        "decoder_ffn_dim": "mlp_size",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout_rate",
        "activation_dropout": "mlp_dropout_rate",
    },
    ours={"name": "transformer", "norm_eps": NORM_EPS},
)
architectures = (MARIAN.architecture,)
frame = Frame("$A eos", "$A eos $B eos")

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def huggingface_config(model: Transformer, special_ids: Mapping[str, int]) -> Values:
    if model.config.norm_eps != NORM_EPS:
        raise InputError(f"model.norm_eps={model.config.norm_eps} is not supported by {MARIAN.architecture}, only 1e-5")
    return {
        **MARIAN.export(model.config),
        "is_encoder_decoder": True,
        "vocab_size": model.vocab_size,
        "pad_token_id": special_ids["pad"],
        "bos_token_id": None,
        "eos_token_id": special_ids["eos"],
        "forced_eos_token_id": special_ids["eos"],
        "decoder_start_token_id": special_ids["pad"],
        "dtype": "float32",
    }


def from_huggingface_config(values: Values) -> Values:
    require_model_type(values, "transformer", ("marian",))
    restored = MARIAN.restore(values)
    for theirs, ours in (("decoder_attention_heads", "num_heads"), ("decoder_ffn_dim", "intermediate_size")):
        if values[theirs] != restored[ours]:
            raise InputError(f"{theirs}={values[theirs]!r} is not supported, only the encoder's {restored[ours]!r}")
    return restored


def weight_map(model: Transformer) -> list[WeightMap]:
    entries = [vocabulary("token_embedding.weight", "model.shared.weight", model.vocab_size)]
    stacks = (("encoder", model.config.num_layers), ("decoder", model.config.decoder_layers))
    for stack, layers in stacks:
        for i in range(layers):
            entries += _block(f"{stack}.blocks.{i}", f"model.{stack}.layers.{i}", cross=stack == "decoder")
    return entries


def spellings(name: str) -> list[str]:
    return [name]


def probe_inputs(model: Transformer, rng: np.random.Generator) -> list[Inputs]:
    inputs, targets = (probe_rows(model.config.max_seq_len, model.vocab_size, rng) for _ in range(2))
    return [{"input_ids": a, "decoder_input_ids": b} for a, b in zip(inputs, reversed(targets), strict=True)]


def probe_outputs(model: Transformer, inputs: Inputs, values: Values) -> Inputs:
    return {"logits": model.head.logits(model(inputs["input_ids"], inputs["decoder_input_ids"]))}


def _block(ours: str, theirs: str, cross: bool) -> list[WeightMap]:
    entries = []
    attentions = (("attention", "attention_norm", "self_attn"), ("cross_attention", "cross_norm", "encoder_attn"))
    for attention, norm, their_attention in attentions[: 1 + cross]:
        for a, b in ATTENTION.items():
            entries.append(WeightMap(f"{ours}.{attention}.{a}.weight", f"{theirs}.{their_attention}.{b}.weight"))
            entries.append(WeightMap("no_bias", f"{theirs}.{their_attention}.{b}.bias"))
        entries += with_parts(f"{ours}.{norm}", f"{theirs}.{their_attention}_layer_norm")
    for a, b in (("mlp.up", "fc1"), ("mlp.down", "fc2"), ("mlp_norm", "final_layer_norm")):
        entries += with_parts(f"{ours}.{a}", f"{theirs}.{b}")
    return entries

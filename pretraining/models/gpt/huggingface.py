"""GPT's Hugging Face counterparts: GPT-2 as published is GPT2LMHeadModel, GPT-1 OpenAIGPTLMHeadModel, the modern
decoder LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.export import Frame
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.gpt.model import GPT
from pretraining.models.huggingface_map import (
    ConfigMap,
    Inputs,
    Key,
    Values,
    probe_rows,
    require,
    require_model_type,
)
from pretraining.models.weight_map import WeightMap, transposed, vocabulary, with_and_without, with_parts

GPT2 = ConfigMap(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    keys=[
        Key("num_layers", "n_layer"),
        Key("hidden_size", "n_embd"),
        Key("num_heads", "n_head"),
        Key("max_seq_len", "n_positions"),
        Key("intermediate_size", "n_inner", default=lambda values: 4 * values["n_embd"], resolved="mlp_size"),
        Key("norm_eps", "layer_norm_epsilon", default=1e-5),
        Key("tie_embeddings", "tie_word_embeddings", default=True),
    ],
    only={"activation_function": ("gelu_new", "gelu_pytorch_tanh")},
    checked={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    written={
        "n_ctx": "max_seq_len",  # llama.cpp's converter reads it
        "initializer_range": "initializer_range",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), "dropout"),
        "attn_pdrop": "attention_dropout_rate",
    },
    ours={
        "positions": "learned",
        "norm": "layernorm",
        "norm_position": "pre",
        "activation": "gelu_tanh",
        "bias": True,
    },
)
GPT1 = ConfigMap(
    architecture="OpenAIGPTLMHeadModel",
    model_type="openai-gpt",
    keys=[
        Key("num_layers", "n_layer"),
        Key("hidden_size", "n_embd"),
        Key("num_heads", "n_head"),
        Key("max_seq_len", "n_positions"),
        Key("norm_eps", "layer_norm_epsilon", default=1e-5),
        Key("tie_embeddings", "tie_word_embeddings", default=True),
    ],
    only={"afn": ("gelu",)},  # the form with tanh
    written={
        "initializer_range": "initializer_range",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), "dropout"),
        "attn_pdrop": "attention_dropout_rate",
    },
    ours={**GPT2.ours, "norm_position": "post"},
)
LLAMA = ConfigMap(
    architecture="LlamaForCausalLM",
    model_type="llama",
    keys=[
        Key("num_layers", "num_hidden_layers"),
        Key("hidden_size", "hidden_size"),
        Key("num_heads", "num_attention_heads"),
        Key("num_kv_heads", "num_key_value_heads", lambda values: values["num_attention_heads"], resolved="kv_heads"),
        Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
        Key("norm_eps", "rms_norm_eps", default=1e-6),
        Key("tie_embeddings", "tie_word_embeddings", default=False),
    ],
    only={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    written={
        "max_position_embeddings": "max_seq_len",  # not read back: rotary positions have no weights
        "attention_dropout": "attention_dropout_rate",
        "initializer_range": "initializer_range",
    },
    ours={
        "positions": "rotary",
        "norm": "rmsnorm",
        "norm_position": "pre",
        "activation": "swiglu",
        "bias": False,
    },
)
architectures = (GPT2.architecture, GPT1.architecture, LLAMA.architecture)
frame = Frame("bos $A", "bos $A bos $B")  # as training opens each document


def huggingface_config(model: GPT, special_ids: Mapping[str, int]) -> Values:
    counterpart = _counterpart(model.config)
    if counterpart is LLAMA:
        theta = model.config.rope_theta
        values = {
            **LLAMA.export(model.config),
            "rope_theta": theta,  # read by transformers before 5
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    else:
        values = counterpart.export(model.config)
    ids = {f"{name}_token_id": special_ids[name] for name in ("bos", "eos", "pad") if name in special_ids}
    return {**values, "vocab_size": model.vocab_size, "dtype": "float32", **ids}


def from_huggingface_config(values: Values) -> Values:
    readers = {"gpt2": _from_gpt2, "openai-gpt": _from_gpt1, "llama": _from_llama}
    require_model_type(values, "gpt", readers)
    return readers[values["model_type"]](values)


def _from_gpt2(values: Values) -> Values:
    return {**GPT2.restore(values), "num_kv_heads": values["n_head"]}


def _from_gpt1(values: Values) -> Values:
    size = values["n_embd"]
    return {**GPT1.restore(values), "num_kv_heads": values["n_head"], "intermediate_size": 4 * size}


def _from_llama(values: Values) -> Values:
    """max_seq_len is left free: rotary positions have no weights."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    derived = {"rope_type": rope.get("rope_type", "default"), "head_dim": values.get("head_dim") or head_dim}
    require(derived, {"rope_type": ("default",), "head_dim": (head_dim,)})
    theta = rope.get("rope_theta") or values.get("rope_theta") or 10000.0
    return {**LLAMA.restore(values), "rope_theta": float(theta)}


TABLES = {  # of tokens and of positions, by model_type
    "gpt2": ("transformer.wte.weight", "transformer.wpe.weight"),
    "openai-gpt": ("transformer.tokens_embed.weight", "transformer.positions_embed.weight"),
    "llama": ("model.embed_tokens.weight", None),
}


def weight_map(model: GPT) -> list[WeightMap]:
    config, counterpart = model.config, _counterpart(model.config)
    table, positions = TABLES[counterpart.model_type]
    entries = [vocabulary("token_embedding.weight", table, model.vocab_size)]
    if not config.tie_embeddings and "head" in model.head_names:
        entries.append(vocabulary("head.weight", "lm_head.weight", model.vocab_size))
    if positions is not None:
        entries.append(WeightMap("position_embedding.weight", positions))
    if counterpart is LLAMA:
        entries.append(WeightMap("final_norm.weight", "model.norm.weight"))
    if counterpart is GPT2:
        entries += with_parts("final_norm", "transformer.ln_f")
    block = _llama_block if counterpart is LLAMA else _gpt2_block
    return entries + [entry for i in range(config.num_layers) for entry in block(config, i)]


def spellings(name: str) -> list[str]:
    return with_and_without(name, "transformer", "model")


def probe_inputs(model: GPT, rng: np.random.Generator) -> list[Inputs]:
    return [{"input_ids": row} for row in probe_rows(model.config.max_seq_len, model.vocab_size, rng)]


def probe_outputs(model: GPT, inputs: Inputs, values: Values) -> Inputs:
    return {"logits": model.head.logits(model(inputs["input_ids"]))}


def _counterpart(config: GPTConfig) -> ConfigMap:
    """Raises InputError where the options are not those of one architecture."""
    options = {key: getattr(config, key) for key in GPT2.ours}
    if options == LLAMA.ours:
        return LLAMA
    if options == GPT2.ours and config.kv_heads == config.num_heads:
        return GPT2
    if options == GPT1.ours and config.kv_heads == config.num_heads and config.mlp_size == 4 * config.hidden_size:
        return GPT1
    given = ", ".join(f"model.{key}={value}" for key, value in {**options, "num_kv_heads": config.kv_heads}.items())
    raise InputError(
        f"{given}: no Hugging Face model has these options together. GPT-2 has {_listed(GPT2.ours)} and "
        f"num_kv_heads=num_heads, GPT-1 besides norm_position=post and intermediate_size=4 x hidden_size, Llama has "
        f"{_listed(LLAMA.ours)}"
    )


def _listed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _gpt2_block(config: GPTConfig, i: int) -> list[WeightMap]:
    ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
    qkv = [(f"{ours}.attention.qkv.{part}", f"{theirs}.attn.c_attn.{part}") for part in ("weight", "bias")]
    entries = [WeightMap(*names, _blocks_of(config), _heads_of(config)) for names in qkv]
    dense = {"attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for a, b in dense.items():
        entries.append(transposed(f"{ours}.{a}.weight", f"{theirs}.{b}.weight"))
        entries.append(WeightMap(f"{ours}.{a}.bias", f"{theirs}.{b}.bias"))
    norms = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    return entries + [e for a, b in norms.items() for e in with_parts(f"{ours}.{a}", f"{theirs}.{b}")]


def _blocks_of(config: GPTConfig) -> Callable[[Tensor], Tensor]:
    """Rows [head, (q, k, v), head_dim] -> [(q, k, v), head, head_dim], then [in, out] as Conv1D has it."""

    def export(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (config.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return rows.T.contiguous() if rows.ndim == 2 else rows

    return export


def _heads_of(config: GPTConfig) -> Callable[[Tensor], Tensor]:
    """The inverse of `_blocks_of`."""

    def restore(tensor: Tensor) -> Tensor:
        rows = tensor.T if tensor.ndim == 2 else tensor
        return rows.unflatten(0, (3, config.num_heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()

    return restore


def _llama_block(config: GPTConfig, i: int) -> list[WeightMap]:
    """No row moves: both rotate the halves of a head against each other."""
    names = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    return [WeightMap(f"blocks.{i}.{a}.weight", f"model.layers.{i}.{b}.weight") for a, b in names.items()]

"""GPT's Hugging Face counterparts: GPT-2 as published is GPT2LMHeadModel, the modern decoder LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from data_pipeline.common.errors import InputError
from pretraining.hub.weight_map import WeightMap, transposed, vocabulary
from pretraining.models.gpt.config import GPTConfig

_GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}
_LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}


def huggingface_config(config: GPTConfig, vocab_size: int, special_ids: dict[str, int]) -> dict[str, Any]:
    """config.json. Raises InputError that names the options which have no counterpart together."""
    values = _llama_config(config) if _is_llama(config) else _gpt2_config(config)
    ids = {f"{name}_token_id": special_ids[name] for name in ("bos", "eos", "pad") if name in special_ids}
    return {**values, "vocab_size": vocab_size, "tie_word_embeddings": config.tie_embeddings, "dtype": "float32", **ids}


def weight_map(config: GPTConfig, vocab_size: int) -> list[WeightMap]:
    blocks = _llama_block if _is_llama(config) else _gpt2_block
    prefix = "model" if _is_llama(config) else "transformer"
    table = "embed_tokens" if _is_llama(config) else "wte"
    entries = [vocabulary("token_embedding.weight", f"{prefix}.{table}.weight", vocab_size)]
    if not config.tie_embeddings:
        entries.append(vocabulary("head.weight", "lm_head.weight", vocab_size))
    if _is_llama(config):
        entries.append(WeightMap("final_norm.weight", "model.norm.weight"))
    else:
        entries.append(WeightMap("position_embedding.weight", "transformer.wpe.weight"))
        entries += [WeightMap(f"final_norm.{part}", f"transformer.ln_f.{part}") for part in ("weight", "bias")]
    return entries + [entry for i in range(config.num_layers) for entry in blocks(config, i)]


def from_huggingface_config(values: dict[str, Any]) -> dict[str, Any]:
    """Our model keys, as config.json states them. Raises InputError for what this model has no option for."""
    readers = {"gpt2": _from_gpt2, "llama": _from_llama}
    if values.get("model_type") not in readers:
        raise InputError(
            f"model_type {values.get('model_type')!r} is not one that model.name=gpt reads ({', '.join(readers)})"
        )
    return readers[values["model_type"]](values)


def _is_llama(config: GPTConfig) -> bool:
    """Raises InputError where the options are neither GPT-2's nor Llama's."""
    options = {key: getattr(config, key) for key in _GPT2}
    if options == _LLAMA:
        return True
    if options == _GPT2 and config.kv_heads == config.num_heads:
        return False
    told = ", ".join(f"model.{key}={value}" for key, value in {**options, "num_kv_heads": config.kv_heads}.items())
    raise InputError(
        f"{told}: no Hugging Face model has these options together. GPT-2 has {_told(_GPT2)} and "
        f"num_kv_heads=num_heads, Llama {_told(_LLAMA)}"
    )


def _told(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _gpt2_config(config: GPTConfig) -> dict[str, Any]:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.num_layers,
        "n_embd": config.hidden_size,
        "n_head": config.num_heads,
        "n_positions": config.max_seq_len,
        "n_inner": config.mlp_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "initializer_range": config.initializer_range,
        **rates,
    }


def _llama_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # read by transformers before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": config.dropout,
        "initializer_range": config.initializer_range,
    }


def _from_gpt2(values: dict[str, Any]) -> dict[str, Any]:
    _require(
        values,
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )
    return {
        **_GPT2,
        "num_layers": values["n_layer"],
        "hidden_size": values["n_embd"],
        "num_heads": values["n_head"],
        "num_kv_heads": values["n_head"],
        "max_seq_len": values["n_positions"],
        "intermediate_size": values.get("n_inner") or 4 * values["n_embd"],
        "norm_eps": values.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": values.get("tie_word_embeddings", True),
    }


def _from_llama(values: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions have no weights: max_seq_len is free."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    _require(
        {**values, "rope_type": rope.get("rope_type", "default")},
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "rope_type": ("default",)},
    )
    heads, size = values["num_attention_heads"], values["hidden_size"]
    _require({"head_dim": values.get("head_dim") or size // heads}, {"head_dim": (size // heads,)})
    return {
        **_LLAMA,
        "num_layers": values["num_hidden_layers"],
        "hidden_size": size,
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        "intermediate_size": values["intermediate_size"],
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rope.get("rope_theta", values.get("rope_theta", 10000.0))),
        "tie_embeddings": values.get("tie_word_embeddings", False),
    }


def _require(values: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> None:
    for key, good in allowed.items():
        if values.get(key, good[0]) not in good:
            raise InputError(f"{key} is {values[key]!r}; this model has {' or '.join(map(repr, good))} only")


def _gpt2_block(config: GPTConfig, i: int) -> list[WeightMap]:
    ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
    qkv = [(f"{ours}.attention.qkv.{part}", f"{theirs}.attn.c_attn.{part}") for part in ("weight", "bias")]
    entries = [WeightMap(*names, _blocks_of(config), _heads_of(config)) for names in qkv]
    dense = {"attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for a, b in dense.items():
        entries.append(transposed(f"{ours}.{a}.weight", f"{theirs}.{b}.weight"))
        entries.append(WeightMap(f"{ours}.{a}.bias", f"{theirs}.{b}.bias"))
    norms = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    return entries + [
        WeightMap(f"{ours}.{a}.{part}", f"{theirs}.{b}.{part}") for a, b in norms.items() for part in ("weight", "bias")
    ]


def _blocks_of(config: GPTConfig) -> Any:
    """Rows [head, (q, k, v), head_dim] -> [(q, k, v), head, head_dim], then [in, out] as Conv1D has it."""

    def export(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (config.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return rows.T.contiguous() if rows.ndim == 2 else rows

    return export


def _heads_of(config: GPTConfig) -> Any:
    """The inverse of `_blocks_of`."""

    def restore(tensor: Tensor) -> Tensor:
        rows = tensor.T if tensor.ndim == 2 else tensor
        return rows.unflatten(0, (3, config.num_heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()

    return restore


def _llama_block(config: GPTConfig, i: int) -> list[WeightMap]:
    """Both rotate the halves of a head against each other: no row changes its place."""
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

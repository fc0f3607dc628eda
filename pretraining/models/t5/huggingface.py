"""T5's Hugging Face counterpart: T5ForConditionalGeneration, v1.0 and v1.1."""

from __future__ import annotations

from typing import Any

from data_pipeline.common.errors import InputError
from pretraining.hub.weight_map import WeightMap, transposed, vocabulary
from pretraining.models.t5.config import T5Config

_ACTIVATIONS = {"relu": "relu", "gated_gelu": "gated-gelu"}


def huggingface_config(config: T5Config, vocab_size: int, special_ids: dict[str, int]) -> dict[str, Any]:
    """config.json. transformers scales the logits where tie_word_embeddings is not false, and leaves the head untied
    where the weights hold one."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.attention_head_dim,
        "d_ff": config.mlp_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": _ACTIVATIONS[config.activation],
        "n_positions": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": special_ids["pad"],
        "eos_token_id": special_ids["eos"],
        "decoder_start_token_id": special_ids["pad"],
        "dtype": "float32",
    }


def from_huggingface_config(values: dict[str, Any]) -> dict[str, Any]:
    """Our model keys, as config.json states them; relative positions make max_seq_len free. Raises InputError for
    what this model has no option for."""
    activations = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    activation = values.get("feed_forward_proj", "relu")
    if values.get("model_type") != "t5" or activation not in activations:
        raise InputError(
            f"model_type {values.get('model_type')!r} with feed_forward_proj {activation!r} is not one "
            f"that model.name=t5 reads (t5 with {' or '.join(activations)})"
        )
    # transformers 5 always writes tie_word_embeddings=true, and scale_decoder_outputs=false where it was false
    tied = values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True))
    return {
        "num_layers": values["num_layers"],
        "hidden_size": values["d_model"],
        "num_heads": values["num_heads"],
        "num_decoder_layers": values.get("num_decoder_layers") or values["num_layers"],
        "head_dim": values["d_kv"],
        "intermediate_size": values["d_ff"],
        "activation": activations[activation],
        "tie_embeddings": tied,
        "relative_attention_num_buckets": values.get("relative_attention_num_buckets", 32),
        "relative_attention_max_distance": values.get("relative_attention_max_distance", 128),
        "norm_eps": values.get("layer_norm_epsilon", 1e-6),
    }


def weight_map(config: T5Config, vocab_size: int) -> list[WeightMap]:
    entries = [vocabulary("token_embedding.weight", "shared.weight", vocab_size)]
    if not config.tie_embeddings:
        entries.append(vocabulary("head.weight", "lm_head.weight", vocab_size))
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.decoder_layers)):
        theirs = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries.append(transposed(f"{stack}.relative_bias.table", theirs))
        entries.append(WeightMap(f"{stack}.final_norm.weight", f"{stack}.final_layer_norm.weight"))
        for i in range(layers):
            entries += _block(config, stack, i)
    return entries


def _block(config: T5Config, stack: str, i: int) -> list[WeightMap]:
    names = _attention("attention", "attention_norm", 0, "SelfAttention")
    if stack == "decoder":
        names |= _attention("cross_attention", "cross_norm", 1, "EncDecAttention")
    last = 2 if stack == "decoder" else 1
    gated = {"mlp.gate": "wi_0", "mlp.up": "wi_1", "mlp.down": "wo"}
    mlp = gated if config.activation == "gated_gelu" else {"mlp.up": "wi", "mlp.down": "wo"}
    names |= {"mlp_norm": f"{last}.layer_norm", **{a: f"{last}.DenseReluDense.{b}" for a, b in mlp.items()}}
    return [
        WeightMap(f"{stack}.blocks.{i}.{a}.weight", f"{stack}.block.{i}.layer.{b}.weight") for a, b in names.items()
    ]


def _attention(ours: str, norm: str, layer: int, theirs: str) -> dict[str, str]:
    parts = {"query": "q", "key": "k", "value": "v", "output": "o"}
    return {norm: f"{layer}.layer_norm", **{f"{ours}.{a}": f"{layer}.{theirs}.{b}" for a, b in parts.items()}}

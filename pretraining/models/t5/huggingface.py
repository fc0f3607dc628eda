"""T5's Hugging Face counterpart: T5ForConditionalGeneration, v1.0 and v1.1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.tokenizers.export import Frame
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_rows, require_model_type
from pretraining.models.t5.config import T5Config
from pretraining.models.t5.model import T5
from pretraining.models.weight_map import WeightMap, transposed, vocabulary

CONDITIONAL_GENERATION = ConfigMap(
    architecture="T5ForConditionalGeneration",
    model_type="t5",
    keys=[
        Key("num_layers", "num_layers"),
        Key("hidden_size", "d_model"),
        Key("num_heads", "num_heads"),
        Key("num_decoder_layers", "num_decoder_layers", lambda values: values["num_layers"], resolved="decoder_layers"),
        Key("head_dim", "d_kv", resolved="attention_head_dim"),
        Key("intermediate_size", "d_ff", resolved="mlp_size"),
        Key("activation", "feed_forward_proj", "relu", spelled={"relu": "relu", "gated_gelu": "gated-gelu"}),
        Key("relative_attention_num_buckets", "relative_attention_num_buckets", default=32),
        Key("relative_attention_max_distance", "relative_attention_max_distance", default=128),
        Key("norm_eps", "layer_norm_epsilon", default=1e-6),
    ],
    written={
        "n_positions": "max_seq_len",  # not read back: relative positions leave it free
        "dropout_rate": "dropout",
        "tie_word_embeddings": "tie_embeddings",
    },
)
architectures = (CONDITIONAL_GENERATION.architecture,)
frame = Frame("$A eos", "$A eos $B eos")


def huggingface_config(model: T5, special_ids: Mapping[str, int]) -> Values:
    """transformers scales the logits unless tie_word_embeddings is false, and leaves the head untied where the weights
    hold one."""
    return {
        **CONDITIONAL_GENERATION.export(model.config),
        "is_encoder_decoder": True,
        "vocab_size": model.vocab_size,
        "pad_token_id": special_ids["pad"],
        "eos_token_id": special_ids["eos"],
        "decoder_start_token_id": special_ids["pad"],
        "dtype": "float32",
    }


def from_huggingface_config(values: Values) -> Values:
    require_model_type(values, "t5", ("t5", "mt5"))
    # transformers 5 always writes tie_word_embeddings=true, and scale_decoder_outputs=false where it was false (not for
    # mT5, whose head is always its own)
    tied = values["model_type"] == "t5" and values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True))
    return {**CONDITIONAL_GENERATION.restore(values), "tie_embeddings": tied}


def weight_map(model: T5) -> list[WeightMap]:
    config = model.config
    entries = [vocabulary("token_embedding.weight", "shared.weight", model.vocab_size)]
    if not config.tie_embeddings and "head" in model.head_names:
        entries.append(vocabulary("head.weight", "lm_head.weight", model.vocab_size))
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.decoder_layers)):
        theirs = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries.append(transposed(f"{stack}.relative_bias.table", theirs))
        entries.append(WeightMap(f"{stack}.final_norm.weight", f"{stack}.final_layer_norm.weight"))
        for i in range(layers):
            entries += _block(config, stack, i)
    return entries


def spellings(name: str) -> list[str]:
    """The base model's folder has the same names."""
    return [name]


def probe_inputs(model: T5, rng: np.random.Generator) -> list[Inputs]:
    length, size = model.config.max_seq_len, model.vocab_size
    targets = probe_rows(max(8, length // 4), size, rng)
    inputs = probe_rows(length, size, rng)
    return [{"input_ids": a, "decoder_input_ids": b} for a, b in zip(inputs, targets, strict=True)]


def probe_outputs(model: T5, inputs: Inputs, values: Values) -> Inputs:
    return {"logits": model.head.logits(model(inputs["input_ids"], inputs["decoder_input_ids"]))}


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

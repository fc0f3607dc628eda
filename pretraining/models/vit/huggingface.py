"""ViT's Hugging Face counterpart: ViTForImageClassification. MAE's encoder is mapped by the same tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.common.errors import InputError
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_images
from pretraining.models.vision import VisionConfig
from pretraining.models.vit.model import ViT
from pretraining.models.weight_map import WeightMap, with_and_without, with_parts

ENCODER_KEYS = [
    Key("num_layers", "num_hidden_layers"),
    Key("hidden_size", "hidden_size"),
    Key("num_heads", "num_attention_heads"),
    Key("intermediate_size", "intermediate_size", resolved="mlp_size"),
    Key("image_size", "image_size"),
    Key("patch_size", "patch_size"),
    Key("norm_eps", "layer_norm_eps"),
]
ENCODER_ONLY: dict[str, tuple[object, ...]] = {"num_channels": (3,), "hidden_act": ("gelu",), "qkv_bias": (True,)}
ENCODER_WRITTEN = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout_rate"}
CLASSIFIER = ConfigMap(
    architecture="ViTForImageClassification",
    model_type="vit",
    keys=ENCODER_KEYS,
    only=ENCODER_ONLY,
    written=ENCODER_WRITTEN,
    ours={"name": "vit", "pooling": "cls", "positions": "learned"},
)
architectures = (CLASSIFIER.architecture,)
frame = None

BLOCK = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def huggingface_config(model: ViT, special_ids: Mapping[str, int]) -> Values:
    """The classes are numbered; the objective names them."""
    if model.config.pooling == "mean":
        raise InputError(
            "model.pooling=mean is not supported by transformers' ViTForImageClassification, which reads the class "
            "token: only model.pooling=cls"
        )
    classes = range(model.num_classes)
    return {
        **CLASSIFIER.export(model.config),
        "id2label": {str(i): f"LABEL_{i}" for i in classes},
        "label2id": {f"LABEL_{i}": i for i in classes},
    }


def from_huggingface_config(values: Values) -> Values:
    classes = len(values.get("id2label") or range(values.get("num_labels", 2)))  # two unnamed classes are left out
    return {**CLASSIFIER.restore(values), "num_classes": classes}


def weight_map(model: ViT) -> list[WeightMap]:
    """Names as in the published safetensors files."""
    return encoder_map(model.config) + (with_parts("head", "classifier") if "head" in model.head_names else [])


def spellings(name: str) -> list[str]:
    return with_and_without(name, "vit")


def probe_inputs(model: ViT, rng: np.random.Generator) -> list[Inputs]:
    return [{"pixel_values": probe_images(model.config.image_size, rng)}]


def probe_outputs(model: ViT, inputs: Inputs, values: Values) -> Inputs:
    return {"logits": model.head(model(inputs["pixel_values"]))}


def encoder_map(config: VisionConfig) -> list[WeightMap]:
    """The encoder with a class token, as `vit.*`. Sinusoidal positions are a buffer of ours, a parameter of theirs."""
    embeddings, size = "vit.embeddings", config.patch_size
    entries = [
        WeightMap("encoder.class_token", f"{embeddings}.cls_token", lambda t: t[None, None], lambda t: t[0, 0]),
        WeightMap(
            "encoder.position_embedding",
            f"{embeddings}.position_embeddings",
            lambda t: t[None],
            lambda t: t[0],
            fixed_by="model.positions=sinusoidal",
        ),
        WeightMap(
            "encoder.patch_embedding.weight",
            f"{embeddings}.patch_embeddings.projection.weight",
            lambda t: t.unflatten(1, (3, size, size)),
            lambda t: t.flatten(1),
        ),
        WeightMap("encoder.patch_embedding.bias", f"{embeddings}.patch_embeddings.projection.bias"),
        *with_parts("encoder.final_norm", "vit.layernorm"),
    ]
    for i in range(config.num_layers):
        entries += block_map(f"encoder.blocks.{i}", f"vit.encoder.layer.{i}")
    return entries


def block_map(ours: str, theirs: str) -> list[WeightMap]:
    return [entry for mine, other in BLOCK.items() for entry in with_parts(f"{ours}.{mine}", f"{theirs}.{other}")]

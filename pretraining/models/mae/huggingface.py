"""MAE's Hugging Face counterpart: ViTMAEForPreTraining."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data_pipeline.common.errors import InputError
from pretraining.models.huggingface_map import ConfigMap, Inputs, Key, Values, probe_images, require
from pretraining.models.mae.model import MAE
from pretraining.models.vit.huggingface import (
    ENCODER_KEYS,
    ENCODER_ONLY,
    ENCODER_WRITTEN,
    block_map,
    encoder_map,
)
from pretraining.models.weight_map import WeightMap, with_and_without, with_parts

PRETRAINING = ConfigMap(
    architecture="ViTMAEForPreTraining",
    model_type="vit_mae",
    keys=[
        *ENCODER_KEYS,
        Key("decoder_num_layers", "decoder_num_hidden_layers"),
        Key("decoder_hidden_size", "decoder_hidden_size"),
        Key("decoder_num_heads", "decoder_num_attention_heads"),
    ],
    only=ENCODER_ONLY,
    written=ENCODER_WRITTEN,
    ours={"name": "mae", "positions": "sinusoidal"},
)
architectures = (PRETRAINING.architecture,)
frame = None


def huggingface_config(model: MAE, special_ids: Mapping[str, int]) -> Values:
    config = model.config
    if config.positions == "learned":
        raise InputError(
            "model.positions=learned is not supported by transformers' ViTMAEForPreTraining, only "
            "model.positions=sinusoidal"
        )
    return {**PRETRAINING.export(config), "decoder_intermediate_size": 4 * config.decoder_hidden_size}


def from_huggingface_config(values: Values) -> Values:
    require(values, {"decoder_intermediate_size": (4 * values["decoder_hidden_size"],)})
    return PRETRAINING.restore(values)


def weight_map(model: MAE) -> list[WeightMap]:
    """Names as in the published safetensors files, whose patches hold the three colors of a pixel side by side."""
    size = model.config.patch_size

    def colors_last(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (3, size * size)).transpose(0, 1).flatten(0, 1)

    def colors_first(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (size * size, 3)).transpose(0, 1).flatten(0, 1)

    entries = encoder_map(model.config) + with_parts("decoder.embedding", "decoder.decoder_embed")
    entries += with_parts("decoder.final_norm", "decoder.decoder_norm")
    entries += [
        WeightMap("decoder.mask_token", "decoder.mask_token", lambda t: t[None, None], lambda t: t[0, 0]),
        WeightMap(
            "decoder.position_embedding",
            "decoder.decoder_pos_embed",
            lambda t: t[None],
            lambda t: t[0],
            fixed_by="model.positions=sinusoidal",
        ),
        WeightMap("decoder.pixels.weight", "decoder.decoder_pred.weight", colors_last, colors_first),
        WeightMap("decoder.pixels.bias", "decoder.decoder_pred.bias", colors_last, colors_first),
    ]
    for i in range(model.config.decoder_num_layers):
        entries += block_map(f"decoder.blocks.{i}", f"decoder.decoder_layers.{i}")
    return entries


def spellings(name: str) -> list[str]:
    """transformers 5 renames the decoder's blocks when it saves."""
    renamed = name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
    return [*with_and_without(name, "vit"), renamed]


def probe_inputs(model: MAE, rng: np.random.Generator) -> list[Inputs]:
    """noise: fp32 [2, patches]; transformers keeps the patches of least noise."""
    images = probe_images(model.config.image_size, rng)
    noise = torch.from_numpy(rng.random((2, model.config.grid.patches), dtype=np.float32))
    return [{"pixel_values": images, "noise": noise}]


def probe_outputs(model: MAE, inputs: Inputs, values: Values) -> Inputs:
    """transformers orders a patch's pixels with the channel last."""
    kept = int(inputs["noise"].shape[1] * (1 - values["mask_ratio"]))
    pixels = model(inputs["pixel_values"], inputs["noise"].argsort(1)[:, :kept])
    return {"logits": pixels.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)}

"""MAE: a masked autoencoder (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", section 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_pipeline.common.errors import InputError
from pretraining.hub.weight_map import WeightMap
from pretraining.models.layers import initialize
from pretraining.models.mae.config import MAEConfig
from pretraining.models.vit.model import (
    Block,
    Encoder,
    block_map,
    blocks_flops,
    both,
    encoder_map,
    sinusoidal_positions,
)
from pretraining.parallel.layers import Layers


class Decoder(nn.Module):
    """Encoded visible patches -> the pixels of every patch. Mask tokens stand where patches were left out."""

    position_embedding: Tensor

    def __init__(self, config: MAEConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        hidden, patches = config.decoder_hidden_size, config.grid.patches
        self.embedding = nn.utils.skip_init(nn.Linear, config.hidden_size, hidden)
        self.mask_token = nn.Parameter(torch.empty(hidden))
        self.register_buffer("position_embedding", sinusoidal_positions(math.isqrt(patches), hidden, True))
        self.blocks = nn.ModuleList(
            Block(layers, hidden, config.decoder_num_heads, 4 * hidden, config.norm_eps)
            for _ in range(config.decoder_num_layers)
        )
        self.final_norm = layers.mark_sequence_parallel(nn.LayerNorm(hidden, eps=config.norm_eps))
        self.pixels = nn.utils.skip_init(nn.Linear, hidden, 3 * config.patch_size**2)

    def forward(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """encoded: [batch, 1 + kept, hidden], the class token first; visible: int [batch, kept], which patches these
        are -> [batch, patches, 3 x patch_size x patch_size]."""
        x = self.embedding(encoded)
        every = self.mask_token.to(x.dtype).expand(len(x), self.config.grid.patches, -1)
        every = every.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])
        x = self.layers.scatter_to_sequence_region(torch.cat([x[:, :1], every], dim=1) + self.position_embedding)
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.pixels(self.layers.gather_from_sequence_region(self.final_norm(x))[:, 1:])


class MAE(nn.Module):
    def __init__(self, config: MAEConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        self.encoder = Encoder(config, layers, class_token=True)
        self.decoder = Decoder(config, layers)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """images: [batch, 3, image_size, image_size], normalized; visible: int [batch, kept], the patches that the
        encoder sees -> pixels of every patch, [batch, patches, 3 x patch_size x patch_size]."""
        return self.decoder(self.encoder(images, visible), visible)

    def flops_per_image(self, kept: int) -> float:
        """Forward and backward of one image of which `kept` patches are encoded."""
        config, every = self.config, 1 + self.config.grid.patches
        hidden = config.decoder_hidden_size
        ends = 6.0 * hidden * ((1 + kept) * config.hidden_size + every * 3 * config.patch_size**2)
        decoder = blocks_flops(config.decoder_num_layers, hidden, 4 * hidden, every)
        return self.encoder.flops(1 + kept) + ends + decoder

    def published_parameters(self) -> int:
        """With the fixed positions, which the published count holds."""
        fixed = sum(b.numel() for b in self.buffers())
        return fixed + sum(p.numel() for p in self.parameters())

    def initialize(self, seed: int) -> None:
        """As facebookresearch/mae, models_mae.py: Xavier uniform, the tokens normal of standard deviation 0.02."""
        initialize(self, self.layers, seed, _fill)


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm.weight"):
        tensor.fill_(1.0)
    elif name.endswith(("_token", "position_embedding")):
        tensor.normal_(0.0, 0.02, generator=generator)
    elif tensor.ndim == 1:
        tensor.zero_()
    else:
        nn.init.xavier_uniform_(tensor, generator=generator)


def huggingface_config(config: MAEConfig, num_classes: int, special_ids: dict[str, int]) -> dict[str, Any]:
    """config.json of ViTMAEForPreTraining. Raises InputError where it has no such model."""
    if config.positions == "learned":
        raise InputError(
            "model.positions=learned has no counterpart in transformers' ViTMAEForPreTraining; "
            "model.positions=sinusoidal has"
        )
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_size,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": True,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "decoder_num_hidden_layers": config.decoder_num_layers,
        "decoder_hidden_size": config.decoder_hidden_size,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": 4 * config.decoder_hidden_size,
    }


def from_huggingface_config(values: dict[str, Any]) -> dict[str, Any]:
    """Our model keys of a ViTMAEForPreTraining's config.json. Raises InputError for what ours has not."""
    wanted = {
        "hidden_act": "gelu",
        "qkv_bias": True,
        "num_channels": 3,
        "decoder_intermediate_size": 4 * values["decoder_hidden_size"],
    }
    for key, value in wanted.items():
        if values.get(key, value) != value:
            raise InputError(f"{key}={values[key]!r} is not offered, {value!r} is")
    keys = {
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "norm_eps": "layer_norm_eps",
        "decoder_num_layers": "decoder_num_hidden_layers",
        "decoder_hidden_size": "decoder_hidden_size",
        "decoder_num_heads": "decoder_num_attention_heads",
    }
    return {"name": "mae", "positions": "sinusoidal", **{ours: values[theirs] for ours, theirs in keys.items()}}


def weight_map(config: MAEConfig, num_classes: int) -> list[WeightMap]:
    """Names as in the published safetensors files. Their patches hold a pixel's three colors together."""
    size = config.patch_size

    def colors_last(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (3, size * size)).transpose(0, 1).flatten(0, 1)

    def colors_first(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (size * size, 3)).transpose(0, 1).flatten(0, 1)

    found = encoder_map(config) + both("decoder.embedding", "decoder.decoder_embed")
    found += both("decoder.final_norm", "decoder.decoder_norm")
    found += [
        WeightMap("decoder.mask_token", "decoder.mask_token", lambda t: t[None, None], lambda t: t[0, 0]),
        WeightMap("decoder.position_embedding", "decoder.decoder_pos_embed", lambda t: t[None], lambda t: t[0]),
        WeightMap("decoder.pixels.weight", "decoder.decoder_pred.weight", colors_last, colors_first),
        WeightMap("decoder.pixels.bias", "decoder.decoder_pred.bias", colors_last, colors_first),
    ]
    for i in range(config.decoder_num_layers):
        found += block_map(f"decoder.blocks.{i}", f"decoder.decoder_layers.{i}")
    return found

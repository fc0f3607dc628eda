"""MAE: a masked autoencoder (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.initialization import initialize
from pretraining.models.mae.config import MAEConfig
from pretraining.models.transformer import TransformerModel
from pretraining.models.vit.model import Block, Encoder, blocks_flops, sinusoidal_positions
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import EmptyLinear, Layers

FUSED = ("attention.query.weight", "attention.key.weight", "attention.value.weight")


class Decoder(nn.Module):
    """Encoded visible patches -> the pixels of every patch. Mask tokens take the places of the others."""

    position_embedding: Tensor

    def __init__(self, config: MAEConfig, layers: Layers) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        hidden, patches = config.decoder_hidden_size, config.grid.patches
        self.embedding = EmptyLinear(config.hidden_size, hidden)
        self.mask_token = nn.Parameter(torch.empty(hidden))
        self.register_buffer("position_embedding", sinusoidal_positions(math.isqrt(patches), hidden, True))
        self.blocks = nn.ModuleList(
            Block(layers, hidden, config.decoder_num_heads, 4 * hidden, config.norm_eps)
            for _ in range(config.decoder_num_layers)
        )
        self.final_norm = layers.mark_sequence_parallel(nn.LayerNorm(hidden, eps=config.norm_eps))
        self.pixels = EmptyLinear(hidden, 3 * config.patch_size**2)

    def forward(self, encoded: Tensor, visible: Tensor) -> Tensor:
        """encoded: [batch, 1 + kept, hidden], the class token first; visible: int [batch, kept], which patches these
        are -> [batch, patches, 3 x patch_size x patch_size]."""
        x = self.embedding(encoded)
        every = self.mask_token.to(x.dtype).expand(len(x), self.config.grid.patches, -1)
        every = every.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])
        x = self.layers.scatter_to_sequence_region(torch.cat([x[:, :1], every], dim=1) + self.position_embedding)
        checkpointing = self.config.activation_checkpointing and self.training
        x = run_blocks(self.blocks, x, checkpointing=checkpointing)
        return self.pixels(self.layers.gather_from_sequence_region(self.final_norm(x))[:, 1:])


class MAE(TransformerModel):
    """Role.MASKED_IMAGE_AUTOENCODER: images and the patches that are visible -> the pixels of every patch. No
    label takes part: the vocabulary is not used."""

    def __init__(self, config: MAEConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        self.encoder = Encoder(config, layers, class_token=True)
        self.decoder = Decoder(config, layers)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """See models.base.MaskedImageAutoencoder."""
        return self.decoder(self.encoder(images, visible), visible)

    def flops_per_image(self, kept: int) -> float:
        """Forward and backward of one image of which `kept` patches are encoded."""
        config, every = self.config, 1 + self.config.grid.patches
        hidden = config.decoder_hidden_size
        ends = 6.0 * hidden * ((1 + kept) * config.hidden_size + every * 3 * config.patch_size**2)
        decoder = blocks_flops(config.decoder_num_layers, hidden, 4 * hidden, every)
        return self.encoder.flops(1 + kept) + ends + decoder

    def block_stacks(self) -> list[BlockStack]:
        decoder = self.decoder
        inputs, outputs = (decoder.embedding, decoder.mask_token), (decoder.final_norm, decoder.pixels)
        return [self.encoder.block_stack(), BlockStack(decoder.blocks, inputs, outputs)]

    def published_parameters(self) -> int:
        """With the fixed positions, which the published counts include."""
        fixed = sum(b.numel() for b in self.buffers())
        return fixed + sum(p.numel() for p in self.parameters())

    def initialize(self, seed: int) -> None:
        """As facebookresearch/mae, models_mae.py: Xavier uniform, the tokens normal of standard deviation 0.02. There,
        queries, keys and values are parts of one matrix (timm's Block), whose fan-out is that of all three."""
        initialize(self, self.layers, seed, _fill)


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm.weight"):
        tensor.fill_(1.0)
    elif name.endswith(("_token", "position_embedding")):
        tensor.normal_(0.0, 0.02, generator=generator)
    elif tensor.ndim == 1:
        tensor.zero_()
    elif name.endswith(FUSED):  # sqrt(6 / (in + 3 out)) of square matrices is sqrt(1/2) of sqrt(6 / (in + out))
        nn.init.xavier_uniform_(tensor, gain=math.sqrt(0.5), generator=generator)
    else:
        nn.init.xavier_uniform_(tensor, generator=generator)

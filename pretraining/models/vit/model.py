"""ViT: an encoder of image patches (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretraining.models.attention import Attention
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.heads import class_head
from pretraining.models.initialization import initialize
from pretraining.models.layers import Dropout, FeedForward
from pretraining.models.transformer import TransformerModel
from pretraining.models.vision import VisionConfig
from pretraining.models.vit.config import ViTConfig
from pretraining.models.vocabulary import Vocabulary
from pretraining.parallel.layers import EmptyLinear, Layers
from pretraining.patches import patchify, take_patches


class DropPath(nn.Module):
    """Drops a sample's residual branch at `rate`, divides the others by 1 - rate (Huang et al. 2016, section 3)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """branch: [batch, length, hidden]."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * (keep / (1.0 - self.rate)).to(branch.dtype)


class Block(nn.Module):
    """A pre-norm block; every patch attends to every other."""

    def __init__(
        self,
        layers: Layers,
        hidden: int,
        num_heads: int,
        mlp_size: int,
        eps: float,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        mlp_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = layers.mark_sequence_parallel(nn.LayerNorm(hidden, eps=eps))
        self.attention = Attention(layers, hidden, num_heads, dropout=attention_dropout)
        self.mlp_norm = layers.mark_sequence_parallel(nn.LayerNorm(hidden, eps=eps))
        self.mlp = FeedForward(layers, hidden, mlp_size, "gelu", dropout=mlp_dropout)
        self.dropout = Dropout(layers, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attention(self.attention_norm(x))))
        return x + self.drop_path(self.dropout(self.mlp(self.mlp_norm(x))))


class Encoder(nn.Module):
    """images: [batch, 3, height, width] -> [batch, (class token +) patches, hidden], after the final norm."""

    def __init__(self, config: VisionConfig, layers: Layers, *, class_token: bool) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        hidden, grid = config.hidden_size, config.grid
        self.patch_embedding = EmptyLinear(3 * config.patch_size**2, hidden)
        self.class_token = nn.Parameter(torch.empty(hidden)) if class_token else None
        if config.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(class_token + grid.patches, hidden))
        else:
            table = sinusoidal_positions(math.isqrt(grid.patches), hidden, class_token)
            self.register_buffer("position_embedding", table)
        rates = [config.drop_path * i / max(1, config.num_layers - 1) for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(
            Block(
                layers,
                hidden,
                config.num_heads,
                config.mlp_size,
                config.norm_eps,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout_rate,
                mlp_dropout=config.mlp_dropout_rate,
                drop_path=rate,
            )
            for rate in rates
        )
        self.dropout = nn.Dropout(config.dropout)
        self.final_norm = layers.mark_sequence_parallel(nn.LayerNorm(hidden, eps=config.norm_eps))

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: int [batch, kept], the patches that are encoded (None: all of them)."""
        patches = patchify(images, self.config.patch_size)
        prefix = self.position_embedding.shape[0] - patches.shape[1]
        positions = self.position_embedding[prefix:].expand(len(patches), -1, -1)
        if visible is not None:
            patches, positions = take_patches(patches, visible), take_patches(positions, visible)
        x = self.patch_embedding(patches) + positions
        if self.class_token is not None:
            first = (self.class_token + self.position_embedding[0]).expand(len(x), 1, -1)
            x = torch.cat([first.to(x.dtype), x], dim=1)
        x = self.layers.scatter_to_sequence_region(self.dropout(x))
        checkpointing = self.config.activation_checkpointing and self.training
        x = run_blocks(self.blocks, x, checkpointing=checkpointing)
        return self.layers.gather_from_sequence_region(self.final_norm(x))

    def block_stack(self) -> BlockStack:
        positions = self.position_embedding if isinstance(self.position_embedding, nn.Parameter) else None
        return BlockStack(self.blocks, (self.patch_embedding, self.class_token, positions), (self.final_norm,))

    def flops(self, length: int) -> float:
        """Forward and backward of one image of which `length` tokens are encoded."""
        embedding = 6.0 * length * 3 * self.config.patch_size**2 * self.config.hidden_size
        return embedding + blocks_flops(len(self.blocks), self.config.hidden_size, self.config.mlp_size, length)


class ViT(TransformerModel):
    """Role.IMAGE_ENCODER: images, [batch, 3, image_size, image_size], normalized -> features [batch, hidden]."""

    head: nn.Linear

    def __init__(self, config: ViTConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.num_classes, self.layers = config, vocabulary.classes, layers
        self.encoder = Encoder(config, layers, class_token=config.pooling == "cls")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.encoder(images)
        return hidden[:, 0] if self.config.pooling == "cls" else hidden.mean(1)

    def make_class_head(self) -> nn.Linear:
        return class_head(self)

    def flops_per_image(self) -> float:
        """Forward and backward of one image."""
        length = self.config.grid.patches + (self.config.pooling == "cls")
        return self.encoder.flops(length) + 6.0 * self.config.hidden_size * self.num_classes

    def block_stacks(self) -> list[BlockStack]:
        return [self.encoder.block_stack()]

    def initialize(self, seed: int) -> None:
        """As google-research/vision_transformer, vit_jax/models_vit.py: Xavier uniform, the patch embedding truncated
        normal of variance 1 / fan-in, positions normal of standard deviation 0.02, biases of the feed-forward normal
        of 1e-6, class token and head 0."""
        initialize(self, self.layers, seed, fill)


def fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm.weight"):
        tensor.fill_(1.0)
    elif name.endswith(("mlp.up.bias", "mlp.down.bias")):
        tensor.normal_(0.0, 1e-6, generator=generator)
    elif tensor.ndim == 1 or name == "head.weight":
        tensor.zero_()
    elif name.endswith("position_embedding"):
        tensor.normal_(0.0, 0.02, generator=generator)
    elif name.endswith("patch_embedding.weight"):  # flax' lecun_normal: 0.8796 is a normal's deviation cut at 2
        std = math.sqrt(1.0 / tensor.shape[1]) / 0.87962566103423978
        nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)
    else:
        nn.init.xavier_uniform_(tensor, generator=generator)


def sinusoidal_positions(side: int, hidden: int, class_token: bool) -> Tensor:
    """fp32 [(class token +) side x side, hidden]: half of the features encode the column, half the row; the class
    token's are 0 (facebookresearch/mae, util/pos_embed.py)."""
    frequencies = 10000.0 ** (-torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line.repeat_interleave(side, 0), line.repeat(side, 1)
    table = torch.cat([columns, rows], dim=1).float()
    return torch.cat([table.new_zeros(int(class_token), hidden), table])


def blocks_flops(num_layers: int, hidden: int, mlp_size: int, length: int) -> float:
    """Forward and backward of `num_layers` blocks over `length` tokens: 6 per weight used and token, and attention's
    12 x layers x hidden x length (Chowdhery et al. 2022, "PaLM", appendix B)."""
    weights = num_layers * (4 * hidden * hidden + 2 * hidden * mlp_size)
    return length * (6.0 * weights + 12.0 * num_layers * hidden * length)

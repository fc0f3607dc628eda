"""Transformer-XL: a decoder that remembers the hidden states of the segments before.

As published (Dai et al. 2019, "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context", section 3;
kimiyoung/transformer-xl, pytorch/mem_transformer.py), but for the memory's scope: it runs from segment to segment
within one sample, and nothing is carried from step to step, where the authors carry it along lanes of text. So the
loss of a batch depends on the batch alone, and no memory is of older weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.heads import TokenHead
from pretraining.models.initialization import initialize
from pretraining.models.layers import Dropout, FeedForward, make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.transformer_xl.config import TransformerXLConfig
from pretraining.models.transformer_xl.relative import RelativeAttention, sinusoids
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers

BIASES = ("content_bias", "position_bias")


class Block(nn.Module):
    def __init__(self, config: TransformerXLConfig, layers: Layers) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = RelativeAttention(
            layers,
            size,
            config.num_heads,
            dropout=config.attention_dropout_rate,
            own_biases=config.untie_biases,
        )
        self.attention_norm = make_norm("layernorm", size, config.norm_eps)
        self.mlp = FeedForward(layers, size, config.mlp_size, "relu", dropout=config.mlp_dropout_rate)
        self.mlp_norm = make_norm("layernorm", size, config.norm_eps)
        self.dropout = Dropout(layers, config.dropout)

    def forward(
        self, x: Tensor, memory: Tensor, distances: Tensor, u: Tensor | None, v: Tensor | None, allowed: Tensor
    ) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, memory, distances, u, v, allowed)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class TransformerXL(TextModel):
    """Role.RECURRENT_DECODER."""

    head: TokenHead
    head_bias = True

    def __init__(self, config: TransformerXLConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        size = config.hidden_size
        self.token_embedding = layers.embedding(padded_vocabulary(self.vocab_size), size)
        shape = (config.num_heads, size // config.num_heads)
        self.content_bias = None if config.untie_biases else layers.parameter(shape, 0)
        self.position_bias = None if config.untie_biases else layers.parameter(shape, 0)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.num_layers))

    def forward(self, tokens: Tensor, documents: Tensor | None, segment: int, warm: int = 0) -> Tensor:
        """See models.base.RecurrentDecoder."""
        memories: list[Tensor] = []
        found = []
        for start in range(0, tokens.shape[1], segment):
            part = slice(start, start + segment)
            first = max(0, start - self.config.memory)
            allowed = _allowed(tokens, documents, first, part)
            trained = start >= warm * segment
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                x, memories = self._read(tokens[:, part], memories, allowed)
            if trained:
                found.append(x)
        return torch.cat(found, dim=1)

    def _read(self, tokens: Tensor, memories: list[Tensor], allowed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One segment -> its hidden states, and what each block remembers after it: its inputs, whose gradients end
        here, while the projections of what is remembered are trained (mem_transformer.py, _update_mems). memories: none
        before the first segment."""
        config, keys = self.config, allowed.shape[-1]
        x = self.dropout(self.token_embedding(tokens) * math.sqrt(config.hidden_size))
        distances = torch.arange(keys - 1, -1, -1, device=tokens.device)
        positions = self.dropout(sinusoids(distances, config.hidden_size).to(x.dtype))
        checkpointing = config.activation_checkpointing and self.training
        remembered = []
        for block, memory in zip(self.blocks, memories or [x[:, :0]] * len(self.blocks), strict=True):
            remembered.append(torch.cat([memory, x.detach()], dim=1)[:, -config.memory :])
            context = (memory, positions, self.content_bias, self.position_bias, allowed)
            x = run_blocks([block], x, *context, checkpointing=checkpointing)
        return self.dropout(x), remembered

    def flops_per_token(self, length: int) -> float:
        return self.flops_of_segments(length, 0, 1) / length

    def flops_of_segments(self, segment: int, warm: int, trained: int) -> float:
        """Forward and backward of one sample: 6 per weight used and 18 x layers x hidden x keys for attention's three
        products; of keys and values of the memory 4, since no gradient goes on from there; of a warm segment a third,
        since it has no backward pass, and no head. What a batch shares, the projections of distances, is left out."""
        size, mlp_size = self.config.hidden_size, self.config.mlp_size
        total = trained * segment * 6.0 * self.vocab_size * size
        for number in range(warm + trained):
            remembered = min(self.config.memory, number * segment)
            of_segment = segment * (4 * size * size + 2 * size * mlp_size + 3 * size * (remembered + segment))
            of_memory = remembered * 2 * size * size
            backward = number >= warm
            total += self.config.num_layers * ((6 if backward else 2) * of_segment + (4 if backward else 2) * of_memory)
        return total

    def decays(self, name: str) -> bool:
        """u and v are biases, though each has a row for every head."""
        return super().decays(name) and not name.endswith(BIASES)

    def block_stacks(self) -> list[BlockStack]:
        return [BlockStack(self.blocks, (self.token_embedding, self.content_bias, self.position_bias))]

    def initialize(self, seed: int) -> None:
        """Normal with standard deviation initializer_range, norms' weights the same around 1, biases 0 but for u and v
        (pytorch/train.py, weights_init)."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if name.endswith(".bias"):
            tensor.zero_()
        else:
            center = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.normal_(center, self.config.initializer_range, generator=generator)


def _allowed(tokens: Tensor, documents: Tensor | None, first: int, part: slice) -> Tensor:
    """tokens, documents: int [batch, length] -> bool [batch or 1, 1, tokens of the part, tokens from `first` to its
    end], True for a key of the same document that is not after the query."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    stop = min(part.stop, tokens.shape[1])
    before = places[first:stop] <= places[part, None]
    if documents is None:
        return before[None, None]
    same = documents[:, part, None] == documents[:, None, first:stop]
    return (same & before)[:, None]

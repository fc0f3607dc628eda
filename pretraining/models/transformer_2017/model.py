"""The Transformer (Vaswani et al. 2017, "Attention Is All You Need", section 3).

As published, with what the paper leaves open as in the authors' code (tensorflow/tensor2tensor, models/transformer.py
and layers/common_attention.py): attention's projections have no bias, the features of a position are all sines, then
all cosines, weights are drawn by Glorot and Bengio's law. Unlike there, the decoder begins with the embedding of pad,
not with zeros. Documents that are packed into a row each have positions from 0 on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretraining.models.attention import Attention, cross_mask, document_mask
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.heads import TokenHead
from pretraining.models.initialization import initialize
from pretraining.models.layers import Dropout, FeedForward, make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.transformer_2017.config import TransformerConfig2017
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers

LONGEST_WAVELENGTH = 10000.0  # section 3.5, in units of 2 pi


def positions_within(documents: Tensor) -> Tensor:
    """documents: int [batch, length], a run of equal numbers for each -> int [batch, length], 0, 1, ... in each."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - places.where(begins, 0).cummax(1).values


def sinusoids(positions: Tensor, hidden: int) -> Tensor:
    """positions: int [batch, length] -> fp32 [batch, length, hidden]: sines, then cosines (section 3.5)."""
    exponents = torch.arange(0, hidden, 2, device=positions.device, dtype=torch.float64) / hidden
    angles = positions[..., None] * LONGEST_WAVELENGTH**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class Block(nn.Module):
    """Post-norm. cross: with attention to an encoder's output, as a decoder's block has it."""

    def __init__(self, config: TransformerConfig2017, layers: Layers, cross: bool) -> None:
        super().__init__()
        self.attention, self.attention_norm = _attention(config, layers), _norm(config, layers)
        if cross:
            self.cross_attention, self.cross_norm = _attention(config, layers), _norm(config, layers)
        self.mlp = FeedForward(layers, config.hidden_size, config.mlp_size, "relu", dropout=config.mlp_dropout_rate)
        self.mlp_norm = _norm(config, layers)
        self.dropout = Dropout(layers, config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, context: Tensor | None, context_mask: Tensor | None
    ) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, causal=causal)))
        if context is not None:
            attended = self.cross_attention(x, context_mask, context=context)
            x = self.cross_norm(x + self.dropout(attended))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class Stack(nn.Module):
    """An encoder, or with `cross` a decoder."""

    def __init__(self, config: TransformerConfig2017, layers: Layers, num_layers: int, cross: bool) -> None:
        super().__init__()
        self.config, self.causal, self.layers = config, cross, layers
        self.blocks = nn.ModuleList(Block(config, layers, cross) for _ in range(num_layers))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, documents: Tensor | None, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """x: [batch, length, hidden], embeddings; documents: [batch, length]. context_mask: as in Attention."""
        if documents is None:
            mask, positions = None, torch.arange(x.shape[1], device=x.device)[None]
        else:
            mask, positions = document_mask(documents, causal=self.causal), positions_within(documents)
        # section 3.4: embeddings are multiplied by sqrt(d_model)
        x = x * math.sqrt(self.config.hidden_size) + sinusoids(positions, self.config.hidden_size).to(x.dtype)
        x = self.layers.scatter_to_sequence_region(self.dropout(x))
        checkpointing = self.config.activation_checkpointing and self.training
        return run_blocks(self.blocks, x, mask, self.causal, context, context_mask, checkpointing=checkpointing)


class Transformer(TextModel):
    """Role.ENCODER_DECODER: inputs and targets (shifted right), int [batch, length] -> the decoder's hidden states
    [batch, targets, hidden]."""

    head: TokenHead
    no_bias: Tensor

    def __init__(self, config: TransformerConfig2017, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), config.hidden_size)
        self.encoder = Stack(config, layers, config.num_layers, cross=False)
        self.decoder = Stack(config, layers, config.decoder_layers, cross=True)
        self.register_buffer("no_bias", torch.zeros(config.hidden_size))  # what an export's attention has for one

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        input_documents: Tensor | None = None,
        target_documents: Tensor | None = None,
    ) -> Tensor:
        """See models.base.EncoderDecoder."""
        context = self.encoder(self.token_embedding(inputs), input_documents)
        mask = None
        if input_documents is not None and target_documents is not None:
            mask = cross_mask(target_documents, input_documents)
        hidden = self.decoder(self.token_embedding(targets), target_documents, context, mask)
        return self.layers.gather_from_sequence_region(hidden)

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token, averaged over those of the encoder and as many of the decoder: 6 per
        weight that it passes, 12 x hidden per key that it is compared with (Chowdhery et al. 2022, "PaLM", appendix B),
        in rows of one document. Keys and values of the cross-attention are computed from the encoder's tokens."""
        config = self.config
        projection, mlp = config.hidden_size**2, 2 * config.hidden_size * config.mlp_size
        keys = 12 * config.hidden_size * length
        encoder = config.num_layers * (6 * (4 * projection + mlp) + keys) + config.decoder_layers * 6 * 2 * projection
        decoder = config.decoder_layers * (6 * (6 * projection + mlp) + 2 * keys)
        return (encoder + decoder + 6 * self.vocab_size * config.hidden_size) / 2

    def block_stacks(self) -> list[BlockStack]:
        """The encoder's and the decoder's; both read the embedding."""
        return [BlockStack(stack.blocks, (self.token_embedding,)) for stack in (self.encoder, self.decoder)]

    def initialize(self, seed: int) -> None:
        """Embeddings are normal with deviation hidden_size ** -0.5 (layers/modalities.py), other weights uniform with
        variance 2 / (fan_in + fan_out), biases 0."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        elif name == "token_embedding.weight":
            tensor.normal_(0.0, self.config.hidden_size**-0.5, generator=generator)
        else:
            nn.init.xavier_uniform_(tensor, generator=generator)


def _norm(config: TransformerConfig2017, layers: Layers) -> nn.Module:
    return layers.mark_sequence_parallel(make_norm("layernorm", config.hidden_size, config.norm_eps))


def _attention(config: TransformerConfig2017, layers: Layers) -> Attention:
    dropout = config.attention_dropout_rate
    return Attention(layers, config.hidden_size, config.num_heads, bias=False, dropout=dropout)

"""T5: an encoder and a decoder with relative position buckets.

As published (Raffel et al. 2019, "Exploring the Limits of Transfer Learning", section 2.1), v1.0 with ReLU and a tied
head, v1.1 with gated GELU and an untied one (google-research/text-to-text-transfer-transformer,
released_checkpoints.md). Scores are not scaled: the initialization of the queries makes up for it.
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
from pretraining.models.t5.config import T5Config
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers

TARGET_SHARE = 114 / 512  # tokens that the decoder sees for each of the encoder: section 3.1.4's span corruption


def relative_bucket(distance: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """distance: int, the key's position minus the query's -> the bucket of each (section 2.1; Mesh TensorFlow,
    transformer_layers.py, _relative_position_bucket).

    Half of a direction's buckets hold one distance each, the others ranges that grow logarithmically to max_distance.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """What each head adds to its scores, by the distance between query and key.

    table: [heads, buckets]; under tensor parallelism each rank has its heads.
    """

    def __init__(self, config: T5Config, layers: Layers, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional, self.buckets = bidirectional, config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.table = layers.parameter((config.num_heads, self.buckets), 0)

    def forward(self, length: int, device: torch.device) -> Tensor:
        """-> [heads, length, length], for queries and keys of one sequence."""
        distances = torch.arange(1 - length, length, device=device)
        buckets = relative_bucket(
            distances, bidirectional=self.bidirectional, buckets=self.buckets, max_distance=self.max_distance
        )
        by_distance = self.table[:, buckets]
        # query i sees the distances from -i on: a window that begins at length - 1 - i
        return by_distance.unfold(1, length, 1).flip(1)


class Block(nn.Module):
    """Pre-norm. cross: with attention to an encoder's output, as a decoder's block has it."""

    def __init__(self, config: T5Config, layers: Layers, cross: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(config, layers), _attention(config, layers)
        if cross:
            self.cross_norm, self.cross_attention = _norm(config, layers), _attention(config, layers)
        self.mlp_norm = _norm(config, layers)
        self.mlp = FeedForward(
            layers, config.hidden_size, config.mlp_size, config.activation, bias=False, dropout=config.mlp_dropout_rate
        )
        self.dropout = Dropout(layers, config.dropout)

    def forward(self, x: Tensor, bias: Tensor, context: Tensor | None, context_mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        if context is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), context_mask, context=context))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Stack(nn.Module):
    """An encoder, or with `cross` a decoder. All of its blocks share one relative bias."""

    def __init__(self, config: T5Config, layers: Layers, num_layers: int, cross: bool) -> None:
        super().__init__()
        self.config, self.causal, self.layers = config, cross, layers
        self.relative_bias = RelativeBias(config, layers, bidirectional=not cross)
        self.blocks = nn.ModuleList(Block(config, layers, cross) for _ in range(num_layers))
        self.final_norm = _norm(config, layers)
        self.dropout = nn.Dropout(config.dropout)
        self.final_dropout = Dropout(layers, config.dropout)

    def forward(
        self, x: Tensor, documents: Tensor | None, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """x: [batch, length, hidden]; documents: [batch, length]. context_mask: as in Attention."""
        bias = self._masked_bias(x, documents)
        x = self.layers.scatter_to_sequence_region(self.dropout(x))
        checkpointing = self.config.activation_checkpointing and self.training
        x = run_blocks(self.blocks, x, bias, context, context_mask, checkpointing=checkpointing)
        return self.final_dropout(self.final_norm(x))

    def _masked_bias(self, x: Tensor, documents: Tensor | None) -> Tensor:
        """-> [batch or 1, heads, length, length], -inf where attention is not allowed; each row allows some key."""
        bias = self.relative_bias(x.shape[1], x.device)[None]
        if documents is None and not self.causal:
            return bias
        if documents is None:
            documents = torch.zeros(1, x.shape[1], dtype=torch.long, device=x.device)
        return bias.masked_fill(~document_mask(documents, causal=self.causal), float("-inf"))


class T5(TextModel):
    """Role.ENCODER_DECODER: inputs and targets (shifted right), int [batch, length] -> the decoder's hidden states
    [batch, targets, hidden]."""

    head: TokenHead

    def __init__(self, config: T5Config, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), config.hidden_size)
        self.encoder = Stack(config, layers, config.num_layers, cross=False)
        self.decoder = Stack(config, layers, config.decoder_layers, cross=True)
        self.tie_embeddings = config.tie_embeddings

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
        hidden = self.layers.gather_from_sequence_region(
            self.decoder(self.token_embedding(targets), target_documents, context, mask)
        )
        return hidden * self.config.hidden_size**-0.5 if self.config.tie_embeddings else hidden

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token, averaged over those of the encoder and TARGET_SHARE as many of the
        decoder: 6 per weight that it passes, 12 x width per key that it is compared with (Chowdhery et al. 2022,
        "PaLM", appendix B). Keys and values of the cross-attention are computed from the encoder's tokens."""
        config = self.config
        width = config.num_heads * config.attention_head_dim
        projection = config.hidden_size * width
        mlp = config.hidden_size * config.mlp_size * (3 if config.activation == "gated_gelu" else 2)
        encoder = config.num_layers * (6 * (4 * projection + mlp) + 12 * width * length)
        encoder += config.decoder_layers * 6 * 2 * projection
        keys = length * (1 + TARGET_SHARE)
        decoder = config.decoder_layers * (6 * (6 * projection + mlp) + 12 * width * keys)
        decoder += 6 * self.vocab_size * config.hidden_size
        return (encoder + TARGET_SHARE * decoder) / (1 + TARGET_SHARE)

    def block_stacks(self) -> list[BlockStack]:
        """The encoder's and the decoder's; both read the embedding."""
        return [
            BlockStack(stack.blocks, (self.token_embedding, stack.relative_bias), (stack.final_norm,))
            for stack in (self.encoder, self.decoder)
        ]

    def decays(self, name: str) -> bool:
        """The relative biases don't, although they have two dimensions."""
        biases = [stack.relative_bias.table for stack in (self.encoder, self.decoder)]
        return super().decays(name) and not any(self.get_parameter(name) is bias for bias in biases)

    def initialize(self, seed: int) -> None:
        """As transformers (modeling_t5.py, _init_weights): normal, of standard deviation 1 for the embedding, (hidden x
        head_dim) ** -0.5 for queries and fan_in ** -0.5 for everything else. An untied head is one more dense layer, as
        in Mesh TensorFlow; transformers gives it 1, with which training starts at a loss of hundreds.

        Not as in Mesh TensorFlow, which trained T5: there feed-forward layers and the untied head are cut at two
        deviations (layers.py, dense), which makes them 0.88 of what they are here, and the relative biases have
        sqrt(2 / (heads + buckets)) (ops.py, get_variable), six times the value here."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, self._standard_deviation(name, tensor), generator=generator)

    def _standard_deviation(self, name: str, tensor: Tensor) -> float:
        hidden = self.config.hidden_size
        if name == "token_embedding.weight":
            return 1.0
        if name.endswith("query.weight"):
            return (hidden * self.config.attention_head_dim) ** -0.5
        if name.endswith("relative_bias.table"):
            return hidden**-0.5
        return tensor.shape[1] ** -0.5


def _norm(config: T5Config, layers: Layers) -> nn.Module:
    return layers.mark_sequence_parallel(make_norm("rmsnorm", config.hidden_size, config.norm_eps))


def _attention(config: T5Config, layers: Layers) -> Attention:
    return Attention(
        layers,
        config.hidden_size,
        config.num_heads,
        bias=False,
        dropout=config.attention_dropout_rate,
        head_dim=config.attention_head_dim,
        scale=1.0,
    )

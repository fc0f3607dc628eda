"""GPT: a decoder.

GPT-2 as published (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3); by an
option its predecessor, whose blocks are post-norm (Radford et al. 2018, "Improving Language Understanding by Generative
Pre-Training", section 4.1; openai/finetune-transformer-lm, train.py); and by others the modern decoder: rotary
positions, RMSNorm, SwiGLU, grouped-query attention (Touvron et al. 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretraining.models.attention import Attention, document_mask, rotary_tables
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.gpt.config import GPTConfig
from pretraining.models.heads import TokenHead
from pretraining.models.initialization import initialize
from pretraining.models.layers import Dropout, FeedForward, make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layers: Layers) -> None:
        super().__init__()
        size = config.hidden_size
        self.post_norm = config.norm_position == "post"
        self.attention_norm = layers.mark_sequence_parallel(make_norm(config.norm, size, config.norm_eps, config.bias))
        self.attention = Attention(
            layers,
            size,
            config.num_heads,
            num_kv_heads=config.kv_heads,
            bias=config.bias,
            fused=config.kv_heads == config.num_heads and config.bias,
            dropout=config.attention_dropout_rate,
        )
        self.mlp_norm = layers.mark_sequence_parallel(make_norm(config.norm, size, config.norm_eps, config.bias))
        self.mlp = FeedForward(
            layers, size, config.mlp_size, config.activation, config.bias, dropout=config.mlp_dropout_rate
        )
        self.dropout = Dropout(layers, config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.post_norm:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask, causal=True, rotary=rotary)))
            return self.mlp_norm(x + self.dropout(self.mlp(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, causal=True, rotary=rotary))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(TextModel):
    """Role.DECODER: tokens, int [batch, length] -> hidden states [batch, length, hidden]."""

    head: TokenHead

    def __init__(self, config: GPTConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), config.hidden_size)
        self.tie_embeddings = config.tie_embeddings
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_seq_len, config.hidden_size) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.num_layers))
        norm = make_norm(config.norm, config.hidden_size, config.norm_eps, config.bias)
        self.final_norm = layers.mark_sequence_parallel(norm) if config.norm_position == "pre" else None

    def forward(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """See models.base.Decoder."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x, rotary = self.token_embedding(tokens), None
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        else:
            head_dim = self.config.hidden_size // self.config.num_heads
            rotary = rotary_tables(positions, head_dim, self.config.rope_theta)
        x = self.layers.scatter_to_sequence_region(self.dropout(x))
        mask = None if documents is None else document_mask(documents, causal=True)
        checkpointing = self.config.activation_checkpointing and self.training
        x = run_blocks(self.blocks, x, mask, rotary, checkpointing=checkpointing)
        return self.layers.gather_from_sequence_region(x if self.final_norm is None else self.final_norm(x))

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token: 6 per weight used, and attention's 12 x layers x hidden x length
        (Chowdhery et al. 2022, "PaLM", appendix B). Attention across the whole length is counted."""
        config = self.config
        head_dim = config.hidden_size // config.num_heads
        attention = config.hidden_size * head_dim * (2 * config.num_heads + 2 * config.kv_heads)
        mlp = config.hidden_size * config.mlp_size * (3 if config.activation == "swiglu" else 2)
        weights = config.num_layers * (attention + mlp) + self.vocab_size * config.hidden_size
        return 6.0 * weights + 12.0 * config.num_layers * config.hidden_size * length

    def block_stacks(self) -> list[BlockStack]:
        return [BlockStack(self.blocks, (self.token_embedding, self.position_embedding), (self.final_norm,))]

    def initialize(self, seed: int) -> None:
        """Normal with standard deviation initializer_range, half of it for positions; layers that write to the residual
        stream have it divided by sqrt(2 x layers) (GPT-2, section 2.3; openai/gpt-2, src/model.py: 0.02 and 0.01).
        With norm_position=post all have the same (GPT-1, section 4.1)."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            return
        std, alike = self.config.initializer_range, self.config.norm_position == "post"
        if name.endswith(("attention.output.weight", "mlp.down.weight")) and not alike:
            std /= math.sqrt(2 * self.config.num_layers)
        if name == "position_embedding.weight" and not alike:
            std /= 2
        tensor.normal_(0.0, std, generator=generator)

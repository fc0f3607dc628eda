"""BERT and its relatives: an encoder of tokens. Its heads and its pooler are the objective's (models.heads).

As published (Devlin et al. 2018, "BERT", section 3; google-research/bert, modeling.py and run_pretraining.py) but for
GELU, which is erf's as in the paper and in transformers, not the code's tanh form (at most 5e-4 apart); or by an option
with pre-norm blocks (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretraining.models.attention import Attention, document_mask, horizon_mask
from pretraining.models.bert.config import EncoderConfig
from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.heads import Ids, MaskedTokenHead, PairHead
from pretraining.models.initialization import initialize, truncated_normal
from pretraining.models.layers import Dropout, FeedForward, make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.parallel.layers import Layers

MASKED_SHARE = 0.15  # of the tokens pass the head: Devlin et al. 2018, section 3.1


class Block(nn.Module):
    def __init__(self, config: EncoderConfig, layers: Layers) -> None:
        super().__init__()
        size = config.hidden_size
        self.post_norm = config.norm_position == "post"
        self.attention = Attention(layers, size, config.num_heads, dropout=config.attention_dropout_rate)
        self.attention_norm = layers.mark_sequence_parallel(make_norm("layernorm", size, config.norm_eps))
        self.mlp = FeedForward(layers, size, config.mlp_size, config.activation, dropout=config.mlp_dropout_rate)
        self.mlp_norm = layers.mark_sequence_parallel(make_norm("layernorm", size, config.norm_eps))
        self.dropout = Dropout(layers, config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.post_norm:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
            return self.mlp_norm(x + self.dropout(self.mlp(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class BERT(TextModel):
    """Role.TOKEN_ENCODER: tokens, int [batch, length] -> hidden states [batch, length, hidden]."""

    head: MaskedTokenHead
    pair_head: PairHead

    def __init__(self, config: EncoderConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocabulary, self.layers = config, vocabulary, layers
        self.vocab_size = vocabulary.size
        features = config.embedding_features
        self.token_embedding = layers.embedding(padded_vocabulary(vocabulary.size), features)
        self.position_embedding = nn.Embedding(config.max_seq_len, features)
        self.segment_embedding = nn.Embedding(config.segments, features) if config.segments else None
        if not config.segments:  # transformers' RoBERTa has one anyway: it leaves as zeros, and must come as zeros
            self.register_buffer("no_segment", torch.zeros(1, features))
        self.embedding_norm = make_norm("layernorm", features, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.embedding_map = nn.Linear(features, config.hidden_size) if config.embedding_size else None
        self.blocks = nn.ModuleList(
            Block(config, layers) for _ in range(1 if config.shared_layers else config.num_layers)
        )
        norm = make_norm("layernorm", config.hidden_size, config.norm_eps)
        self.final_norm = layers.mark_sequence_parallel(norm) if config.norm_position == "pre" else None

    @property
    def layer_blocks(self) -> list[nn.Module]:
        """The block of each layer, from below; with shared layers the same in all of them."""
        return [*self.blocks] * (self.config.num_layers if self.config.shared_layers else 1)

    @property
    def horizon_segments(self) -> int:
        return self.config.segments

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        horizon: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """See models.base.TokenEncoder. Where the model tells apart fewer than two segments, they are not looked at.
        horizon: the first and the last position of the sequence that each token sees, int [batch, length] each (None:
        all of its document)."""
        x = self.layers.scatter_to_sequence_region(self._embedded(tokens, segments, positions))
        mask = None if documents is None else document_mask(documents, causal=False)
        if horizon is not None:
            mask = horizon_mask(*horizon) if mask is None else mask & horizon_mask(*horizon)
        checkpointing = self.config.activation_checkpointing and self.training
        x = run_blocks(self.layer_blocks, x, mask, checkpointing=checkpointing)
        return self.layers.gather_from_sequence_region(x if self.final_norm is None else self.final_norm(x))

    def _embedded(self, tokens: Tensor, segments: Tensor | None, positions: Tensor | None) -> Tensor:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        if self.segment_embedding is not None:
            alike = segments is None or self.config.segments == 1
            x = x + self.segment_embedding(torch.zeros_like(tokens) if alike else segments)
        x = self.dropout(self.embedding_norm(x))
        return x if self.embedding_map is None else self.embedding_map(x)

    def make_masked_head(self, layers: Layers, used: Ids | None = None, z_loss: float = 0.0) -> MaskedTokenHead:
        return MaskedTokenHead(self, layers, used, z_loss, self.config.embedding_features, self.config.activation)

    def make_pair_head(self) -> PairHead:
        return PairHead(self)

    def flops_per_token(self, length: int) -> float:
        """Forward and backward of one token: 6 per weight each time that it is used, and attention's 12 x layers x
        hidden x length (Chowdhery et al. 2022, "PaLM", appendix B). Only the masked share of the tokens passes the
        head."""
        config = self.config
        size, features = config.hidden_size, config.embedding_features
        blocks = config.num_layers * (4 * size * size + 2 * size * config.mlp_size)
        embedding = 0 if self.embedding_map is None else features * size
        head = MASKED_SHARE * (size * features + self.vocab_size * features)
        return 6.0 * (embedding + blocks + head) + 12.0 * config.num_layers * size * length

    def block_stacks(self) -> list[BlockStack]:
        tables = (self.token_embedding, self.position_embedding, self.segment_embedding)
        inputs = (*tables, self.embedding_norm, self.embedding_map)
        return [BlockStack(self.layer_blocks, inputs, (self.final_norm,))]

    def initialize(self, seed: int) -> None:
        """As published, see truncated_normal."""
        initialize(self, self.layers, seed, truncated_normal(self.config.initializer_range))

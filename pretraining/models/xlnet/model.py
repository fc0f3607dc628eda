"""XLNet: an encoder whose tokens see each other in a factorization order that comes with the sample.

As published (Yang et al. 2019, "XLNet: Generalized Autoregressive Pretraining for Language Understanding", section 2;
zihangdai/xlnet, modeling.py), with biases of each block's own as the large model, GELU by erf as in transformers, and a
memory that runs within a sample (see models.transformer_xl.model).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretraining.models.blocks import BlockStack, run_blocks
from pretraining.models.heads import TokenHead
from pretraining.models.initialization import initialize
from pretraining.models.layers import Dropout, FeedForward, make_norm
from pretraining.models.transformer import TextModel
from pretraining.models.transformer_xl.relative import sinusoids
from pretraining.models.vocabulary import Vocabulary, padded_vocabulary
from pretraining.models.xlnet.attention import Scene, TwoStreamAttention
from pretraining.models.xlnet.config import XLNetConfig
from pretraining.parallel.layers import Layers

BIASES = ("content_bias", "position_bias", "segment_bias")
PREDICTED_SHARE = 1 / 6  # of the tokens have a query: Yang et al. 2019, section 3.1 (K = 6)


class Block(nn.Module):
    def __init__(self, config: XLNetConfig, layers: Layers) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = TwoStreamAttention(layers, size, config.num_heads, dropout=config.attention_dropout_rate)
        self.attention_norm = make_norm("layernorm", size, config.norm_eps)
        self.mlp = FeedForward(layers, size, config.mlp_size, "gelu", dropout=config.mlp_dropout_rate)
        self.mlp_norm = make_norm("layernorm", size, config.norm_eps)
        self.dropout = Dropout(layers, config.dropout)

    def forward(self, x: Tensor, memory: Tensor, scene: Scene) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, memory, scene)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))


class XLNet(TextModel):
    """Role.PERMUTED_ENCODER."""

    head: TokenHead
    head_bias = True

    def __init__(self, config: XLNetConfig, vocabulary: Vocabulary, layers: Layers) -> None:
        super().__init__()
        self.config, self.vocab_size, self.layers = config, vocabulary.size, layers
        self.token_embedding = layers.embedding(padded_vocabulary(self.vocab_size), config.hidden_size)
        self.query_embedding = nn.Parameter(torch.empty(config.hidden_size))  # what a query knows: nothing
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layers) for _ in range(config.num_layers))

    def forward(
        self, tokens: Tensor, segments: Tensor, places: Tensor, ranks: Tensor, targets: Tensor, reuse: int, warm: int
    ) -> Tensor:
        """See models.base.PermutedEncoder."""
        memories: list[Tensor] = []
        none = targets[:, :0]
        with torch.no_grad():
            for start in range(0, warm * reuse, reuse):
                part = slice(start, start + reuse)
                allowed = in_order(places[:, part], ranks[:, part])
                x, memories = self._read(tokens[:, part], segments[:, part], allowed, none, memories, reuse)
        own = slice(warm * reuse, None)
        allowed = in_order(places[:, own], ranks[:, own], reuse)
        x, _ = self._read(tokens[:, own], segments[:, own], allowed, targets, memories, reuse)
        return x

    def attend(self, tokens: Tensor, segments: Tensor, allowed: Tensor, targets: Tensor) -> Tensor:
        """Without memory. tokens, segments: int [batch, length]; allowed: bool [batch, length, length], True where the
        query of a token may attend; its content also sees itself; targets: int [batch, targets] -> hidden states
        [batch, targets, hidden]."""
        return self._read(tokens, segments, allowed, targets, [], 0)[0]

    def _read(
        self,
        tokens: Tensor,
        segments: Tensor,
        allowed: Tensor,
        targets: Tensor,
        memories: list[Tensor],
        reuse: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """-> the query stream's hidden states [batch, targets, hidden], and what each block remembers after it: the
        content of its inputs' first `reuse` tokens after what it had (modeling.py, _cache_mem)."""
        config, length = self.config, tokens.shape[1]
        content = self.dropout(self.token_embedding(tokens))
        queries = self.query_embedding.repeat(*targets.shape, 1)
        x = torch.cat([content, self.dropout(queries)], dim=1)
        memories = memories or [content[:, :0]] * len(self.blocks)
        scene = self._scene(segments, allowed, targets, memories[0].shape[1], x.dtype)
        checkpointing = config.activation_checkpointing and self.training
        remembered = []
        for block, memory in zip(self.blocks, memories, strict=True):
            known = torch.cat([memory, x[:, :reuse].detach()], dim=1)
            remembered.append(known[:, max(0, known.shape[1] - config.memory) :])
            x = run_blocks([block], x, memory, scene, checkpointing=checkpointing)
        return self.dropout(x[:, length:]), remembered

    def _scene(self, segments: Tensor, allowed: Tensor, targets: Tensor, remembered: int, kind: torch.dtype) -> Scene:
        length, keys = segments.shape[1], remembered + segments.shape[1]
        rows = torch.arange(len(targets), device=targets.device)[:, None]
        itself = torch.eye(length, dtype=torch.bool, device=targets.device)
        seen = torch.cat([allowed | itself, allowed[rows, targets]], dim=1)
        of_queries = torch.cat([segments, segments[rows, targets]], dim=1)
        of_keys = torch.cat([segments.new_zeros(len(segments), remembered), segments], dim=1)  # memory is of segment 0
        before = seen.new_ones(*seen.shape[:2], remembered)
        distances = torch.arange(keys, -length, -1, device=targets.device)
        return Scene(
            targets,
            self.dropout(sinusoids(distances, self.config.hidden_size).to(kind)),
            of_queries[..., None] != of_keys[:, None],
            torch.cat([before, seen], dim=-1)[:, None],
        )

    def flops_per_token(self, length: int) -> float:
        return self.flops_of_sample(length, round(PREDICTED_SHARE * length), length, 0) / length

    def flops_of_sample(self, length: int, targets: int, reuse: int, warm: int) -> float:
        """Forward and backward of one sample: 6 per weight used and for attention's three products with keys and
        distances, of keys and values of the memory 4, since no gradient goes on from there; of a warm part a third,
        since it has no backward pass. The last block's content is needed by no query and counted anyway, since it
        is computed. What a batch shares, the projections of distances, is left out."""
        size, mlp_size, memory = self.config.hidden_size, self.config.mlp_size, self.config.memory
        total = 6.0 * targets * self.vocab_size * size
        for number in range(warm + 1):
            own = number == warm
            tokens, queries = (length, length + targets) if own else (reuse, reuse)
            remembered = min(memory, number * reuse)
            keys = remembered + tokens
            weights = queries * (2 * size * size + 2 * size * mlp_size) + tokens * 2 * size * size
            products = queries * size * (2 * keys + keys + tokens)
            times, of_memory = (6, 4) if own else (2, 2)
            total += self.config.num_layers * (times * (weights + products) + of_memory * remembered * 2 * size * size)
        return total

    def decays(self, name: str) -> bool:
        """Biases of attention are biases, though each has a row for every head, and a segment's embedding is a single
        token's."""
        return super().decays(name) and not name.endswith((*BIASES, "segment_embedding"))

    def block_stacks(self) -> list[BlockStack]:
        return [BlockStack(self.blocks, (self.token_embedding, self.query_embedding))]

    def initialize(self, seed: int) -> None:
        """Normal with standard deviation initializer_range, norms' weights 1, biases of linear layers and norms 0
        (model_utils.py, _get_initializer)."""
        initialize(self, self.layers, seed, self._fill)

    def _fill(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if name.endswith((".bias", "norm.weight")):
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        else:
            tensor.normal_(0.0, self.config.initializer_range, generator=generator)


def in_order(places: Tensor, ranks: Tensor, first: int | None = None) -> Tensor:
    """places, ranks: int [batch, length] -> bool [batch, length, length], True where the query of a token may attend
    (zihangdai/xlnet, data_utils.py, _local_perm and parser).

    places: of a token as a key, -1 where all see it. ranks: of a token as a query, which sees keys of lower places.
    first: tokens of a first part, which sees nothing of the rest and is seen by all of it.
    """
    allowed = (ranks[:, :, None] > places[:, None]) | (places[:, None] < 0)
    if first is None:
        return allowed
    early = torch.arange(places.shape[1], device=places.device) < first
    return torch.where(early[:, None] == early, allowed, ~early[:, None])

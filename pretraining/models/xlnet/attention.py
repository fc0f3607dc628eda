"""Attention by content, distance and segment, for both streams at once (Yang et al. 2019, "XLNet", appendix A.2)."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.parallel.layers import Layers


class Scene(NamedTuple):
    """What all blocks share of a batch. The content stream has a query for each of the `length` tokens, the query
    stream one for each of the `targets` after them; keys are `remembered` positions, then the tokens.

    targets: int [batch, targets], their places among the tokens. distances: [remembered + 2 x length, hidden],
    sinusoids of the distances from remembered + length down to 1 - length. other_segment: bool [batch, length +
    targets, keys]. allowed: bool [batch, 1, length + targets, keys].
    """

    targets: Tensor
    distances: Tensor
    other_segment: Tensor
    allowed: Tensor


class TwoStreamAttention(nn.Module):
    """Scores (q + w) k + (q + r) W R(distance) + (q + s) e(segments equal or not), over the square root of the head's
    size; no biases in the projections (zihangdai/xlnet, modeling.py, two_stream_rel_attn, rel_attn_core)."""

    def __init__(self, layers: Layers, hidden: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.layers, self.head_dim, self.dropout = layers, hidden // num_heads, dropout
        self.query = layers.column(hidden, hidden, False)
        self.key = layers.column(hidden, hidden, False)
        self.value = layers.column(hidden, hidden, False)
        self.position = layers.column(hidden, hidden, False)
        self.output = layers.row(hidden, hidden, False)
        shape = (num_heads, self.head_dim)
        self.content_bias = layers.parameter(shape, 0)
        self.position_bias = layers.parameter(shape, 0)
        self.segment_bias = layers.parameter(shape, 0)
        self.segment_embedding = layers.parameter((2, *shape), 1)  # of an equal segment, of another one

    def forward(self, x: Tensor, memory: Tensor, scene: Scene) -> Tensor:
        """x: [batch, length + targets, hidden], both streams; memory: [batch, remembered, hidden] -> as x."""
        length = x.shape[1] - scene.targets.shape[1]
        query = self.query(x).unflatten(-1, (-1, self.head_dim))
        # apart, since of the memory no gradient is wanted
        parts = [(self.key(part), self.value(part)) for part in (memory, x[:, :length])]
        key, value = (self._heads(torch.cat(both, dim=1)) for both in zip(*parts, strict=True))
        scores = self._by_distance(query, length, key.shape[2], scene) + self._by_segment(query, scene)
        scores = (scores * self.head_dim**-0.5).masked_fill(~scene.allowed, float("-inf"))
        dropout = self.dropout if self.training else 0.0
        with self.layers.model_parallel_rng() if dropout else contextlib.nullcontext():
            mixed = F.scaled_dot_product_attention(
                (query + self.content_bias).transpose(1, 2).to(key.dtype),
                key,
                value,
                attn_mask=scores.to(key.dtype),
                dropout_p=dropout,
            )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _by_distance(self, query: Tensor, length: int, keys: int, scene: Scene) -> Tensor:
        """query: [batch, length + targets, heads, head_dim] -> [batch, heads, length + targets, keys]."""
        position = self._heads(self.position(scene.distances)[None])
        scores = (query + self.position_bias).transpose(1, 2) @ position.transpose(-1, -2)
        content = shifted(scores[:, :, :length])[..., :keys]
        # column c is of distance keys - c: that of the target at place p to key j stands in column length - p + j
        columns = length - scene.targets[..., None] + torch.arange(keys, device=query.device)
        queries = scores[:, :, length:].gather(-1, columns[:, None].expand(-1, scores.shape[1], -1, -1))
        return torch.cat([content, queries], dim=2)

    def _by_segment(self, query: Tensor, scene: Scene) -> Tensor:
        both = torch.einsum("bind,snd->bnis", query + self.segment_bias, self.segment_embedding)
        return torch.where(scene.other_segment[:, None], both[..., 1:], both[..., :1])

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, length, heads x head_dim] -> [batch, heads, length, head_dim]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def shifted(scores: Tensor) -> Tensor:
    """scores: [..., length, columns], column c of each row for the same distance -> [..., length, columns - 1], whose
    column j of row i is column length - i + j (Dai et al. 2019, "Transformer-XL", appendix B)."""
    length, columns = scores.shape[-2:]
    return scores.flatten(-2)[..., length:].unflatten(-1, (length, columns - 1))

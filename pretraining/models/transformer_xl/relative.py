"""Attention by content and by distance (Dai et al. 2019, "Transformer-XL", section 3.3 and appendix B)."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.parallel.layers import Layers


class RelativeAttention(nn.Module):
    """Scores (q + u) k + (q + v) W R(distance), over the square root of the head's size; no biases in the projections
    (kimiyoung/transformer-xl, pytorch/mem_transformer.py, RelPartialLearnableMultiHeadAttn).

    own_biases: u and v are its own; else they are given with each call.
    """

    def __init__(self, layers: Layers, hidden: int, num_heads: int, *, dropout: float, own_biases: bool) -> None:
        super().__init__()
        self.layers, self.head_dim, self.dropout = layers, hidden // num_heads, dropout
        self.query = layers.column(hidden, hidden, False)
        self.key = layers.column(hidden, hidden, False)
        self.value = layers.column(hidden, hidden, False)
        self.position = layers.column(hidden, hidden, False)
        self.output = layers.row(hidden, hidden, False)
        shape = (num_heads, self.head_dim)
        self.content_bias = layers.parameter(shape, 0) if own_biases else None
        self.position_bias = layers.parameter(shape, 0) if own_biases else None

    def forward(
        self, x: Tensor, memory: Tensor, distances: Tensor, u: Tensor | None, v: Tensor | None, allowed: Tensor
    ) -> Tensor:
        """x: [batch, length, hidden], after memory: [batch, remembered, hidden].

        distances: [remembered + length, hidden], sinusoids of the distances from remembered + length - 1 down to 0.
        u, v: [heads, head_dim], None where they are its own. allowed: bool, broadcast to [batch, heads, length,
        remembered + length], False for all keys after the query.
        """
        u, v = (u, v) if self.content_bias is None else (self.content_bias, self.position_bias)
        assert u is not None and v is not None
        query = self.query(x).unflatten(-1, (-1, self.head_dim))
        # apart, since of the memory no gradient is wanted
        parts = [(self.key(part), self.value(part)) for part in (memory, x)]
        key, value = (self._heads(torch.cat(both, dim=1)) for both in zip(*parts, strict=True))
        position = self._heads(self.position(distances)[None])
        by_position = shifted((query + v).transpose(1, 2) @ position.transpose(-1, -2)) * self.head_dim**-0.5
        dropout = self.dropout if self.training else 0.0
        with self.layers.model_parallel_rng() if dropout else contextlib.nullcontext():
            mixed = F.scaled_dot_product_attention(
                (query + u).transpose(1, 2).to(key.dtype),
                key,
                value,
                attn_mask=by_position.masked_fill(~allowed, float("-inf")).to(key.dtype),
                dropout_p=dropout,
            )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, length, heads x head_dim] -> [batch, heads, length, head_dim]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def shifted(scores: Tensor) -> Tensor:
    """scores: [..., length, keys], column c of a row for the distance keys - 1 - c -> column j of row i for the
    distance from query i, which is key keys - length + i, back to key j (appendix B). What lies after the query holds
    values of other rows and must be masked."""
    length, keys = scores.shape[-2:]
    padded = F.pad(scores, (1, 0)).flatten(-2)
    return padded[..., length:].unflatten(-1, (length, keys))


def sinusoids(distances: Tensor, size: int) -> Tensor:
    """distances: int [n] -> fp32 [n, size], all sines, then all cosines (mem_transformer.py, PositionalEmbedding)."""
    frequencies = 10000.0 ** (-torch.arange(0.0, size, 2.0, device=distances.device) / size)
    angles = distances[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

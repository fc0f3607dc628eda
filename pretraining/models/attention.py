"""Attention: the projections, what may attend to what, rotary positions."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.parallel.layers import Layers


class Attention(nn.Module):
    """Multi-head attention over x: [batch, length, hidden], through scaled_dot_product_attention.

    head_dim: None means hidden / num_heads. scale: of the scores (None: head_dim ** -0.5).
    With `fused`, one projection makes queries, keys and values, its rows ordered [head, (q, k, v), head_dim], so that
    a tensor-parallel rank's chunk of the rows is a whole number of heads.
    """

    def __init__(
        self,
        layers: Layers,
        hidden: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        fused: bool = False,
        dropout: float = 0.0,
        head_dim: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.head_dim = head_dim or hidden // num_heads
        self.scale = scale
        self.groups = num_heads // (num_kv_heads or num_heads)
        self.dropout = dropout
        self.fused = fused
        kv_features = (num_kv_heads or num_heads) * self.head_dim
        if fused:
            self.qkv = layers.column(hidden, 3 * hidden, bias)
        else:
            self.query = layers.column(hidden, num_heads * self.head_dim, bias)
            self.key = layers.column(hidden, kv_features, bias)
            self.value = layers.column(hidden, kv_features, bias)
        self.output = layers.row(num_heads * self.head_dim, hidden, bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        rotary: tuple[Tensor, Tensor] | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """mask: broadcast to [batch, heads, length, keys]; bool, True where attention is allowed, or added to the
        scores. context: [batch, keys, hidden], where keys and values come from (None: x; not with `fused`).
        """
        query, key, value = self._project(x, x if context is None else context)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        dropout = self.dropout if self.training else 0.0
        with self.layers.model_parallel_rng() if dropout else contextlib.nullcontext():
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=causal and mask is None,  # torch takes one of the two; a causal mask says both
                dropout_p=dropout,
                scale=self.scale,
                enable_gqa=self.groups > 1,
            )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> each [batch, heads, length, head_dim]."""
        if self.fused:
            heads = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))
            query, key, value = heads.unbind(-2)
        else:
            split = (-1, self.head_dim)
            sources = ((self.query, x), (self.key, context), (self.value, context))
            query, key, value = (project(source).unflatten(-1, split) for project, source in sources)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """positions: [batch, length] -> cos, sin: fp32 [batch, 1, length, head_dim] (Su et al. 2021, section 3.4).

    The halves of a head are rotated against each other, as in GPT-NeoX and Llama.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, length, head_dim], each turned by the angles of its position."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def document_mask(documents: Tensor, *, causal: bool) -> Tensor:
    """documents: [batch, length], which packed document each token belongs to.

    -> bool [batch, 1, length, length], True where a token may attend: within its document and, if causal, not ahead.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril() if causal else same


def horizon_mask(first: Tensor, last: Tensor) -> Tensor:
    """first, last: int [batch, length], the first and the last position that each token sees.

    -> bool [batch, 1, length, length], True where a token may attend.
    """
    keys = torch.arange(first.shape[1], device=first.device)
    return ((first[..., None] <= keys) & (keys <= last[..., None]))[:, None]


def cross_mask(targets: Tensor, inputs: Tensor) -> Tensor:
    """Documents, [batch, targets] and [batch, inputs] -> bool [batch, 1, targets, inputs], True where a target may
    attend: to its own document."""
    # A target's padding may attend everywhere: a row that allows nothing has no softmax.
    mine = targets[:, :, None]
    return ((mine == inputs[:, None, :]) | (mine < 0))[:, None]

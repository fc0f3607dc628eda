"""What the families share: norms, attention, feed-forward, the chunked vocabulary loss, initialization."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.labels import IGNORED
from pretraining.parallel.fragments import Box
from pretraining.parallel.layers import Layers, box_of

LOGITS_IN_MEMORY = 2**24  # elements of the logits that the loss holds at once (64 MiB in fp32)


def make_norm(kind: str, size: int, eps: float, bias: bool = True) -> nn.Module:
    if kind == "layernorm":
        return nn.LayerNorm(size, eps=eps, bias=bias)
    return nn.RMSNorm(size, eps=eps)


class Dropout(nn.Module):
    """Between Layers.enter and leave: of activations that may be split along the sequence."""

    def __init__(self, layers: Layers, rate: float) -> None:
        super().__init__()
        self.layers, self.rate = layers, rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        with self.layers.model_parallel_rng(sequence_only=True):
            return F.dropout(x, self.rate)


class Attention(nn.Module):
    """Multi-head attention over x: [batch, length, hidden], through scaled_dot_product_attention.

    head_dim: None means hidden / num_heads. scale: of the scores (None: head_dim ** -0.5).
    With `fused`, one projection makes queries, keys and values, its rows ordered [head, (q, k, v), head_dim]:
    a plain chunk of the rows is then a whole number of heads.
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
                is_causal=causal and mask is None,
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


class FeedForward(nn.Module):
    """Two layers, or three with a gate (Shazeer 2020, "GLU Variants Improve Transformer").

    dropout: between the activation and the last layer (T5 alone has it there)."""

    def __init__(
        self, layers: Layers, hidden: int, intermediate: int, activation: str, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers, self.dropout = layers, nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]
        self.gate = layers.column(hidden, intermediate, bias) if activation in GATED else None
        self.up = layers.column(hidden, intermediate, bias)
        self.down = layers.row(intermediate, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        middle = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        if self.training and self.dropout.p:
            with self.layers.model_parallel_rng():
                middle = self.dropout(middle)
        return self.down(middle)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
    "gated_gelu": lambda x: F.gelu(x, approximate="tanh"),
}
GATED = {"swiglu", "gated_gelu"}


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """positions: [batch, length] -> cos, sin: fp32 [batch, 1, length, head_dim] (Su et al. 2021, section 3.4).

    The halves of a head are rotated against each other, as in GPT-NeoX and Llama.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, length, head_dim], turned by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def document_mask(documents: Tensor, *, causal: bool) -> Tensor:
    """documents: [batch, length], the packed document that each token belongs to.

    -> bool [batch, 1, length, length], True where a token may look: inside its document, and back if causal.
    """
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril() if causal else same


class TokenHead(nn.Module):
    """Projects hidden states to the vocabulary; padded entries take no part in softmax or logits.

    weight: [padded vocabulary, features], or this rank's rows of it.
    """

    def __init__(self, layers: Layers, vocab_size: int, weight: nn.Parameter, bias: bool = False) -> None:
        super().__init__()
        self.layers, self.vocab_size = layers, vocab_size
        self.weight = weight
        self.bias = layers.parameter((weight.shape[0] * layers.size,), 0) if bias else None

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden: [..., features]; labels: [...], IGNORED where none -> sum of the losses, fp32 scalar."""
        rows = Rows(self.vocab_size, self.layers.rank * self.weight.shape[0], self.layers.group)
        return _VocabularyLoss.apply(hidden.flatten(0, -2), self.weight, self.bias, labels.flatten(), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """-> [..., vocabulary]; of whole weights only."""
        return F.linear(hidden, self.weight, self.bias)[..., : self.vocab_size]


class Rows(NamedTuple):
    """Which rows of the vocabulary a rank has: those from `first`; the rest is with the others of `group`."""

    vocab_size: int
    first: int = 0
    group: Any = None

    def reduce(self, x: Tensor, maximum: bool = False) -> Tensor:
        if self.group is not None:
            dist.all_reduce(x, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.group)
        return x


class _VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden @ weight.T without ever holding all logits.

    The gradients of a chunk are made while its logits are there, so that nothing is computed twice
    (the idea of Hsu et al. 2024, "Liger Kernel", section 3.2).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: Rows) -> Tensor:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            x, w = hidden.to(kind), weight.to(kind)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grads = [
                torch.zeros_like(t) if t is not None and need else None
                for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False)
            ]
            size = max(1, LOGITS_IN_MEMORY // weight.shape[0])
            for first in range(0, len(x), size):
                part = slice(first, first + size)
                logits = x[part] @ w.T if bias is None else x[part] @ w.T + bias
                chunk_loss, grad = _chunk_loss(logits.float(), labels[part], rows)
                loss += chunk_loss
                _add_gradients(grads, grad, x, w, part)
        if grads[0] is not None:
            rows.reduce(grads[0])
        ctx.save_for_backward(*grads)
        ctx.kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        scale = grads[0]
        return (
            *(
                None if g is None else (g * scale).to(kind)
                for g, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
            ),
            None,
            None,
        )


def _add_gradients(grads: list[Tensor | None], grad: Tensor, x: Tensor, w: Tensor, part: slice) -> None:
    """grad: fp32 [n, vocabulary], by the logits of x[part]."""
    hidden, weight, bias = grads
    if bias is not None:
        bias += grad.sum(0)
    grad = grad.to(x.dtype)
    if hidden is not None:
        torch.mm(grad, w, out=hidden[part])
    if weight is not None:
        weight += grad.T @ x[part]


def _chunk_loss(logits: Tensor, labels: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """logits: fp32 [n, rows] -> (sum of the losses, its gradient by the logits), both fp32."""
    logits[:, max(0, rows.vocab_size - rows.first) :] = float("-inf")
    counted = labels != IGNORED
    target = labels.clamp(min=0)[:, None] - rows.first
    here = (target >= 0) & (target < logits.shape[1])
    target = target.masked_fill(~here, 0)
    largest = rows.reduce(logits.amax(-1, keepdim=True), maximum=True)
    chosen = rows.reduce((logits.gather(1, target) - largest).masked_fill(~here, 0.0))
    grad = logits.sub_(largest).exp_()
    total = rows.reduce(grad.sum(-1, keepdim=True))
    losses = (total.log() - chosen)[:, 0]
    grad.div_(total).scatter_add_(1, target, -here.float())
    return (losses * counted).sum(), grad.mul_(counted[:, None])


def initialize(
    model: nn.Module, layers: Layers, seed: int, rule: Callable[[str, Tensor, torch.Generator], None]
) -> None:
    """Fills every parameter by `rule(name, whole tensor, generator)`.

    Each has a generator of its own, keyed by seed and name: weights depend neither on the order in which
    modules were built nor on how they are sharded.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)
            shape, box = box_of(parameter, layers.size, layers.rank)
            whole = torch.empty(shape)
            rule(name, whole, generator)
            parameter.copy_(whole[box.slices_of(Box((0,) * len(shape), shape))])

"""Cross-entropy over a vocabulary that is never held whole: by chunks of tokens, and over tensor-parallel ranks."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.labels import IGNORED

LOGITS_IN_MEMORY = 2**24  # elements of the logits that the loss holds at once (64 MiB in fp32)


class Rows(NamedTuple):
    """Which rows of the vocabulary a rank has: those from `first` on; the other ranks of `group` have the rest.

    unused: (start, stop) of ids that take no part in the softmax, besides those from `vocab_size` on.
    """

    vocab_size: int
    first: int = 0
    group: dist.ProcessGroup | None = None
    unused: tuple[tuple[int, int], ...] = ()

    @property
    def classes(self) -> int:
        """How many ids take part in the softmax, over all ranks."""
        return self.vocab_size - sum(stop - start for start, stop in self.unused)

    def without_unused(self, logits: Tensor, value: float = float("-inf")) -> Tensor:
        """logits: [n, this rank's rows], changed in place."""
        for start, stop in (*self.unused, (self.vocab_size, self.first + logits.shape[1])):
            logits[:, max(0, start - self.first) : max(0, stop - self.first)] = value
        return logits

    def reduce(self, x: Tensor, maximum: bool = False) -> Tensor:
        if self.group is not None:
            dist.all_reduce(x, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.group)
        return x


class _Context(Protocol):
    """What torch passes from forward to backward."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]
    kinds: tuple[torch.dtype | None, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of hidden @ weight.T + bias, without ever holding all logits: fp32 scalar.

    hidden: [tokens, features]. weight: [rows, features] and bias: [rows], or None: this rank's rows of the
    vocabulary. labels: int [tokens], IGNORED where there is none. z_loss: times the squared logarithm of the softmax's
    denominator, added for each token (Mesh TensorFlow, layers.py, softmax_cross_entropy_with_logits). label_smoothing:
    share of the target that is spread evenly over all ids that take part in the softmax, the label's own among them
    (Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", section 7).

    The gradients of a chunk are computed while its logits are there, so that nothing is computed twice
    (the idea of Hsu et al. 2024, "Liger Kernel", section 3.2).
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: Rows,
        z_loss: float,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            x, w = hidden.to(kind), weight.to(kind)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grads = [
                torch.zeros_like(t) if t is not None and need else None
                for t, need in zip((x, weight, bias), ctx.needs_input_grad, strict=False)
            ]
            size = max(1, LOGITS_IN_MEMORY // weight.shape[0])  # tokens of a chunk
            for first in range(0, len(x), size):
                part = slice(first, first + size)
                logits = x[part] @ w.T if bias is None else x[part] @ w.T + bias
                chunk_loss, grad = _chunk_loss(logits.float(), labels[part], rows, z_loss, label_smoothing)
                loss += chunk_loss
                _add_gradients(grads, grad, x, w, part)
        if grads[0] is not None:  # by this rank's rows alone so far
            rows.reduce(grads[0])
        ctx.save_for_backward(*grads)
        ctx.kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        return (
            *(
                None if g is None else (g * scale).to(kind)
                for g, kind in zip(ctx.saved_tensors, ctx.kinds, strict=True)
            ),
            *(None,) * 4,
        )


def _add_gradients(grads: list[Tensor | None], grad: Tensor, x: Tensor, w: Tensor, part: slice) -> None:
    """grad: fp32 [n, rows], the gradient by the logits of x[part]."""
    hidden, weight, bias = grads
    if bias is not None:
        bias += grad.sum(0)
    grad = grad.to(x.dtype)
    if hidden is not None:
        torch.mm(grad, w, out=hidden[part])
    if weight is not None:
        weight += grad.T @ x[part]


def _chunk_loss(
    logits: Tensor, labels: Tensor, rows: Rows, z_loss: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """logits: fp32 [n, rows] -> (sum of the losses, its gradient by the logits), both fp32."""
    logits = rows.without_unused(logits)
    counted = labels != IGNORED
    target = labels.clamp(min=0)[:, None] - rows.first
    here = (target >= 0) & (target < logits.shape[1])
    target = target.masked_fill(~here, 0)
    # the largest logit over all ranks' rows is subtracted, so that exp cannot overflow
    largest = rows.reduce(logits.amax(-1, keepdim=True), maximum=True)
    chosen = rows.reduce((logits.gather(1, target) - largest).masked_fill(~here, 0.0))
    logits.sub_(largest)
    if label_smoothing:
        evenly = rows.reduce(logits.masked_fill(logits == -torch.inf, 0.0).sum(-1, keepdim=True)) / rows.classes
        chosen = chosen + label_smoothing * (evenly - chosen)
    grad = logits.exp_()
    total = rows.reduce(grad.sum(-1, keepdim=True))
    losses = (total.log() - chosen)[:, 0]
    # softmax minus one at the target, in place: the logits' memory becomes the gradient's
    grad.div_(total)
    if z_loss:
        log_z = total.log() + largest
        losses = losses + z_loss * log_z[:, 0].square()
        grad.mul_(1.0 + 2.0 * z_loss * log_z)
    if label_smoothing:
        rows.without_unused(grad.sub_(label_smoothing / rows.classes), 0.0)
    grad.scatter_add_(1, target, (label_smoothing - 1.0) * here)
    return (losses * counted).sum(), grad.mul_(counted[:, None])

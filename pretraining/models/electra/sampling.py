"""Tokens drawn from a softmax by noise that is a pure function of a key: the same on every layout.

The largest of logit + Gumbel noise is a sample of the softmax (Gumbel 1954). An inverse distribution function of one
uniform number a key would do as well, but moves wherever any probability before the drawn one is rounded differently:
half of the draws changed under noise of bf16's size where 13 of 3000 do here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretraining.models.heads import TokenHead
from pretraining.models.loss import LOGITS_IN_MEMORY

COPIES = 8  # of a chunk's logits that the noise takes, in bytes of fp32: its integers have twice the width
# splitmix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators", figure 17) on wrapping int64
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
SECOND_FACTOR = 0x94D049BB133111EB - 2**64


class SamplingHead(TokenHead):
    """A TokenHead that also draws a token at each position. For unsharded weights only."""

    def forward(  # type: ignore[override]  # a head of another kind: it takes keys and gives two results
        self, hidden: Tensor, labels: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden: [..., features]; labels, keys: int64 [...] -> the sum of the losses, fp32 scalar, and int64 [...], a
        token for each key without a gradient."""
        # Both in one forward: under ZeRO 3 the table is there for the forward of a module
        return super().forward(hidden, labels), self._draw(hidden, keys)

    def _draw(self, hidden: Tensor, keys: Tensor) -> Tensor:
        drawn = torch.empty_like(keys)
        flat, rows = drawn.view(-1), hidden.detach().flatten(0, -2).float()
        size = max(1, LOGITS_IN_MEMORY // COPIES // self.weight.shape[0])
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(rows), size):
                part = slice(first, first + size)
                flat[part] = sample(self.logits(rows[part]), keys.flatten()[part])
        return drawn


def sample(logits: Tensor, keys: Tensor) -> Tensor:
    """logits: fp32 [n, vocabulary]; keys: int64 [n] -> int64 [n], each drawn from the softmax of its row."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return (logits + gumbel(keys[:, None], ids)).argmax(-1)


def gumbel(keys: Tensor, ids: Tensor) -> Tensor:
    """int64, broadcast -> fp32 noise of each (key, id), Gumbel(0, 1). The integers behind it are the same on every
    device; the two logarithms may differ in their last bit."""
    bits = (splitmix64(keys, ids) >> 32) & 0xFFFFFFFF
    # clamped below 1, where fp32's spacing is 2^-24, so that the noise is finite
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()  # -log(-log(1 - u)): precise near u = 0, where it is large


def splitmix64(seeds: Tensor, numbers: Tensor) -> Tensor:
    """int64: output `numbers` (from 0) of the generator that `seeds` begins, the bits of an unsigned integer."""
    x = seeds + (numbers + 1) * GOLDEN_GAMMA
    x = (x ^ _shifted(x, 30)) * FIRST_FACTOR
    x = (x ^ _shifted(x, 27)) * SECOND_FACTOR
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, zeros coming in; int64's own shift brings in copies of the sign."""
    return (x >> places) & (2 ** (64 - places) - 1)

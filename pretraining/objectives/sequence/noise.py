"""Noise for encoder-decoders: which tokens of a document the encoder reads and which the decoder has to write.

Pure functions of lengths and a generator. The published algorithm is random_spans_helper and random_spans_noise_mask
of google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py (Raffel et al. 2019, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Parts(NamedTuple):
    """A corrupted segment: what the encoder reads and what the decoder writes, int64, without end tokens."""

    inputs: np.ndarray
    targets: np.ndarray


class Denoiser(Protocol):
    """A way to corrupt a segment of n >= 2 tokens."""

    def lengths(self, n: int) -> tuple[int, int]:
        """-> the most tokens that its inputs and its targets can have. Neither decreases as n grows."""
        ...

    def sentinels(self, n: int) -> int:
        """How many sentinels it uses."""
        ...

    def corrupt(self, tokens: np.ndarray, sentinels: Sequence[int], rng: np.random.Generator) -> Parts: ...


@dataclass(frozen=True)
class Spans:
    """Spans of `mean_length` tokens on average, `density` of all tokens, each replaced by a sentinel."""

    density: float
    mean_length: float

    def counts(self, n: int) -> tuple[int, int]:
        """-> (noise tokens, noise spans) of n tokens. Not random: packing has to know the lengths beforehand."""
        noise = min(max(round(n * self.density), 1), n - 1)
        return noise, min(max(round(noise / self.mean_length), 1), n - noise)

    def sentinels(self, n: int) -> int:
        return self.counts(n)[1]

    def lengths(self, n: int) -> tuple[int, int]:
        noise, spans = self.counts(n)
        return n - noise + spans, noise + spans

    def mask(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """-> bool [n], True for noise: it begins with a span that is kept and ends with noise."""
        noise, spans = self.counts(n)
        lengths = np.stack([random_division(n - noise, spans, rng), random_division(noise, spans, rng)], axis=1)
        return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.reshape(-1))

    def corrupt(self, tokens: np.ndarray, sentinels: Sequence[int], rng: np.random.Generator) -> Parts:
        mask = self.mask(len(tokens), rng)
        return Parts(_replace(tokens, mask, sentinels), _replace(tokens, ~mask, sentinels))


@dataclass(frozen=True)
class Prefix:
    """The decoder continues what the encoder reads. It writes at least one token and at most `max_fraction` of them,
    each number with equal probability."""

    max_fraction: float

    def lengths(self, n: int) -> tuple[int, int]:
        return n - 1, self._most(n)

    def sentinels(self, n: int) -> int:
        return 0

    def corrupt(self, tokens: np.ndarray, sentinels: Sequence[int], rng: np.random.Generator) -> Parts:
        at = len(tokens) - int(rng.integers(1, self._most(len(tokens)) + 1))
        return Parts(tokens[:at], tokens[at:])

    def _most(self, n: int) -> int:
        return max(1, min(n - 1, int(n * self.max_fraction)))


def random_division(items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """-> int [count], positive, with the sum `items`: every such division is equally likely."""
    borders = np.sort(rng.choice(items - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], borders, [items]]))


def _replace(tokens: np.ndarray, mask: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """The n-th run of True in `mask` becomes the n-th sentinel."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    marked = np.where(begins, np.asarray(sentinels)[np.cumsum(begins) - 1], tokens)
    return marked[begins | ~mask].astype(np.int64)


def solve_lengths(lengths: Callable[[int], tuple[int, int]], inputs_length: int) -> tuple[int, int]:
    """-> (tokens, targets) of the longest segment whose inputs fit `inputs_length`, as random_spans_helper finds it:
    with T5's spans and end tokens, inputs of 512 hold 568 tokens and have targets of 114.

    lengths: tokens of a segment -> the most tokens of its inputs and its targets, end tokens included.
    """
    tokens = 2
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, lengths(tokens)[1]

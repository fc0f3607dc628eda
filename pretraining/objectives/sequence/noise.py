"""Noise for encoder-decoders: which tokens of a document go to the encoder and which the decoder has to give back.

Pure functions of lengths and a generator. The published algorithm is random_spans_helper and random_spans_noise_mask
of google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py (Raffel et al. 2019, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Parts(NamedTuple):
    """A corrupted piece: what the encoder reads and what the decoder writes, int64, without an end mark."""

    inputs: np.ndarray
    targets: np.ndarray


class Denoiser(Protocol):
    """lengths: the most tokens that inputs and targets of a piece of n >= 2 tokens have; neither falls with n."""

    def lengths(self, n: int) -> tuple[int, int]: ...

    def sentinels(self, n: int) -> int: ...

    def corrupt(self, tokens: np.ndarray, sentinels: range, rng: np.random.Generator) -> Parts: ...


@dataclass(frozen=True)
class Spans:
    """Spans of `mean_length` tokens on average, `density` of all tokens, each replaced by a sentinel."""

    density: float
    mean_length: float

    def counts(self, n: int) -> tuple[int, int]:
        """-> (noise tokens, noise spans) of n tokens: never random, so that lengths are known beforehand."""
        noise = min(max(round(n * self.density), 1), n - 1)
        return noise, min(max(round(noise / self.mean_length), 1), n - noise)

    def sentinels(self, n: int) -> int:
        return self.counts(n)[1]

    def lengths(self, n: int) -> tuple[int, int]:
        noise, spans = self.counts(n)
        return n - noise + spans, noise + spans

    def mask(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """-> bool [n], True where noise is: begins with a span that is kept and ends with noise."""
        noise, spans = self.counts(n)
        lengths = np.stack([segments(n - noise, spans, rng), segments(noise, spans, rng)], axis=1)
        return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.reshape(-1))

    def corrupt(self, tokens: np.ndarray, sentinels: range, rng: np.random.Generator) -> Parts:
        mask = self.mask(len(tokens), rng)
        return Parts(_replace(tokens, mask, sentinels), _replace(tokens, ~mask, sentinels))


@dataclass(frozen=True)
class Prefix:
    """The decoder continues what the encoder reads; it gets at most `share` of the tokens, at least one, uniformly."""

    share: float

    def lengths(self, n: int) -> tuple[int, int]:
        return n - 1, self._most(n)

    def sentinels(self, n: int) -> int:
        return 0

    def corrupt(self, tokens: np.ndarray, sentinels: range, rng: np.random.Generator) -> Parts:
        at = len(tokens) - int(rng.integers(1, self._most(len(tokens)) + 1))
        return Parts(tokens[:at], tokens[at:])

    def _most(self, n: int) -> int:
        return max(1, min(n - 1, int(n * self.share)))


def segments(items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """-> int [count], positive, of the sum `items`: each such division is equally likely."""
    borders = np.sort(rng.choice(items - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], borders, [items]]))


def _replace(tokens: np.ndarray, mask: np.ndarray, sentinels: range) -> np.ndarray:
    """The n-th run of True in `mask` becomes the n-th sentinel."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    marked = np.where(begins, sentinels.start + np.cumsum(begins) - 1, tokens)
    return marked[begins | ~mask].astype(np.int64)


def solve_lengths(lengths: Callable[[int], tuple[int, int]], inputs_length: int) -> tuple[int, int]:
    """The longest piece whose inputs fit `inputs_length` -> (its tokens, its targets): random_spans_helper. With T5's
    spans and an end mark each, 568 tokens fill 512 and make targets of 114.

    lengths: tokens of a piece -> the most that its inputs and targets have, end marks counted.
    """
    tokens = 2
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    return tokens, lengths(tokens)[1]

"""Which corpus a sample of a mixture is drawn from: a pure function of its number, the shares and the seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.randomness import Purpose, generator

Name = TypeVar("Name", str, int)
SHORTEST_PERIOD = 1024  # samples
SMALLEST_SHARE = 1e-6  # a period of two million samples, whose order is held in memory
WHOLE = 1 << 40  # shares are counted in parts of this, so that no number of samples is rounded


def smoothed_shares(sizes: Mapping[Name, float], smoothing: float) -> dict[Name, float]:
    """Shares that go by size ** smoothing, as languages of different size are drawn (Conneau and Lample 2019, section
    3.1). 1: by size; towards 0 all equal."""
    powers = {name: size**smoothing for name, size in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


class Shares:
    """Deals samples 0, 1, 2, ... to corpora, by cumulative rounding.

    Before period t of `period` samples, corpus i was dealt floor(t * period * F_i) - floor(t * period * F_(i-1))
    samples, with F the cumulative shares: less than one off its share, forever. Within a period the samples stand in an
    order that seed and period permute. A period has two samples of each corpus at least on average, and so never none.
    """

    def __init__(self, shares: Mapping[str, float], seed: int) -> None:
        """shares: above 0; by their proportions. Raises InputError for one that is too small to be dealt."""
        self.names, self.seed = sorted(shares), seed  # whatever order they are given in
        total = sum(Fraction(share) for share in shares.values())
        for name, share in shares.items():
            if Fraction(share) < total * Fraction(SMALLEST_SHARE):
                raise InputError(
                    f"data.sources.{name} would have {float(Fraction(share) / total):.1g} of the samples, less than "
                    f"{SMALLEST_SHARE:g}: set data.shares, a smaller data.smoothing, or leave it out"
                )
        whole = {name: max(1, round(Fraction(share) / total * WHOLE)) for name, share in shares.items()}
        self.weights = whole
        self.total = sum(whole.values())
        self.bounds = [0, *itertools.accumulate(whole[name] for name in self.names)]
        self.period = max(SHORTEST_PERIOD, -(-2 * self.total // min(whole.values())))
        self.order = lru_cache(maxsize=2)(self._order)

    def corpus(self, number: int) -> str:
        """Which one sample `number` is drawn from."""
        period, place = divmod(number, self.period)
        return self.names[self.order(period)[place]]

    def counts(self, number: int) -> dict[str, int]:
        """How many of the first `number` samples each corpus has."""
        return dict(zip(self.names, self._counts(number), strict=True))

    def between(self, first: int, stop: int) -> dict[str, int]:
        """How many of the samples [first, stop) each corpus has."""
        period, place = divmod(first, self.period)
        if stop - first <= self.period - place:
            found = np.bincount(self.order(period)[place : place + stop - first], minlength=len(self.names)).tolist()
        else:
            found = [b - a for a, b in zip(self._counts(first), self._counts(stop), strict=True)]
        return dict(zip(self.names, found, strict=True))

    def _counts(self, number: int) -> list[int]:
        period, place = divmod(number, self.period)
        own = np.bincount(self.order(period)[:place], minlength=len(self.names)).tolist()
        return [a + b for a, b in zip(self._dealt(period), own, strict=True)]

    def _dealt(self, period: int) -> list[int]:
        """Samples of each corpus before a period. Python's integers: 10^12 samples x 2^40 parts are beyond 64 bits."""
        edges = [period * self.period * bound // self.total for bound in self.bounds]
        return [b - a for a, b in itertools.pairwise(edges)]

    def _order(self, period: int) -> npt.NDArray[np.int32]:
        """int32 [period], the corpus of each sample, by its place in `names`."""
        counts = [b - a for a, b in zip(self._dealt(period), self._dealt(period + 1), strict=True)]
        slots = np.repeat(np.arange(len(self.names), dtype=np.int32), counts)
        return generator(self.seed, Purpose.MIXTURE, period).permutation(slots)

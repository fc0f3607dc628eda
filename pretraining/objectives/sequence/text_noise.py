"""BART's noises: text infilling, token masking and deletion, sentence permutation, document rotation.

Lewis et al. 2019, "BART", section 2.2; the laws are those of the authors' code (facebookresearch/fairseq,
fairseq/data/denoising_dataset.py). Pure functions of tokens and a generator; no beginning or end token is among the
tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
LEAST_PROBABILITY = 1e-7  # where the authors cut the Poisson distribution


@dataclass(frozen=True)
class Substitutes:
    """What stands in the place of tokens. mask: the id of the mask token. random_rate: share of masks in whose place
    one of the `ids` stands, any with equal probability."""

    mask: int
    ids: Ints
    random_rate: float = 0.0

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        random = rng.random(count) < self.random_rate
        return np.where(random, rng.choice(self.ids, count), self.mask)

    def draw_inserted(self, count: int, rng: np.random.Generator) -> Ints:
        """Of those that are inserted the authors round the random ones up, rather than drawing how many there are."""
        random = np.arange(count) < math.ceil(count * self.random_rate)
        return rng.permutation(np.where(random, rng.choice(self.ids, count), self.mask))


def span_law(mean: float) -> npt.NDArray[np.float64]:
    """Probabilities of the lengths 0, 1, ...: Poisson's, cut at the first below LEAST_PROBABILITY.

    mean: at most 16, since above 16.1 the first one is below it, as in the authors' code: all spans would be empty.
    """
    assert math.exp(-mean) >= LEAST_PROBABILITY, mean
    law = [math.exp(-mean)]
    while law[-1] >= LEAST_PROBABILITY and len(law) < 128:
        law.append(law[-1] * mean / len(law))
    return np.array(law) / sum(law)


@dataclass(frozen=True)
class Infill:
    """Spans of words, each replaced by one mask, and masks inserted for spans of no word.

    rate: share of the words that spans cover, rounded up; they start at different words but may overlap, and a span
    that runs over the mask of another deletes it: of all words, 26.9% are gone at a rate of 30%. mean: words of a span
    on average.
    """

    rate: float
    mean: float

    def lengths(self, words: int, rng: np.random.Generator) -> Ints:
        """-> int [spans] in words, the sum of which is the budget; the last one is cut to it."""
        budget = math.ceil(words * self.rate)
        law, drawn = span_law(self.mean), np.zeros(0, np.int64)
        while drawn.sum() < budget:
            drawn = np.concatenate([drawn, rng.choice(len(law), budget, p=law)])
        until = int(np.searchsorted(np.cumsum(drawn), budget))
        lengths = drawn[: until + 1]
        lengths[until] -= lengths.sum() - budget
        return lengths

    def __call__(
        self, tokens: Ints, words: Ints, substitutes: Substitutes, longest: int, rng: np.random.Generator
    ) -> Ints:
        """tokens: int [n >= 1]; words: where each begins, the first at 0. longest: masks are not inserted beyond so
        many tokens."""
        lengths = self.lengths(len(words), rng)
        spans = lengths[lengths > 0]
        kept = replace_spans(tokens, words, spans, substitutes, rng)
        return insert(kept, min(len(lengths) - len(spans), longest - len(kept)), substitutes, rng)


def replace_spans(
    tokens: Ints, words: Ints, lengths: Ints, substitutes: Substitutes | None, rng: np.random.Generator
) -> Ints:
    """Spans of so many words, each from another word on, become one mask; without substitutes they are deleted."""
    starts = rng.permutation(len(words))[: len(lengths)]
    borders = np.append(words, len(tokens))
    first, last = borders[starts], borders[np.minimum(starts + lengths, len(words))]
    gone = np.zeros(len(tokens) + 1, np.int64)
    np.add.at(gone, first + (substitutes is not None), 1)  # one mask stays of a span, unless another span covers it
    np.add.at(gone, last, -1)
    result = tokens.copy()
    if substitutes is not None:
        result[first] = substitutes.draw(len(first), rng)
    return result[np.cumsum(gone)[:-1] == 0]


def insert(tokens: Ints, count: int, substitutes: Substitutes, rng: np.random.Generator) -> Ints:
    """So many masks at places of which all choices are equally likely."""
    places = rng.permutation(len(tokens) + count)[:count]
    old = np.ones(len(tokens) + count, bool)
    old[places] = False
    result = np.empty(len(old), np.int64)
    result[old] = tokens
    result[places] = substitutes.draw_inserted(count, rng)
    return result


def mask_words(tokens: Ints, words: Ints, rate: float, substitutes: Substitutes, rng: np.random.Generator) -> Ints:
    """A share of the words, rounded up, each replaced by one mask."""
    return replace_spans(tokens, words, _ones(words, rate), substitutes, rng)


def delete_words(tokens: Ints, words: Ints, rate: float, rng: np.random.Generator) -> Ints:
    """A share of the words, rounded up, is left out; the model has to find where."""
    return replace_spans(tokens, words, _ones(words, rate), None, rng)


def permute_sentences(tokens: Ints, sentences: Ints, share: float, rng: np.random.Generator) -> Ints:
    """sentences: where each begins, the first at 0. share: of the sentences, rounded up, that change places with each
    other; all orders of them are equally likely."""
    moved = rng.permutation(len(sentences))[: math.ceil(len(sentences) * share)]
    order = np.arange(len(sentences))
    order[moved] = rng.permutation(moved)
    parts = np.split(tokens, sentences[1:])
    return np.concatenate([parts[number] for number in order])


def rotate(tokens: Ints, rng: np.random.Generator) -> Ints:
    """Begins at a token that is drawn with equal probability; the first one counts twice, as in the authors' code."""
    return np.roll(tokens, -int(rng.integers(len(tokens) + 1)))


def _ones(words: Ints, rate: float) -> Ints:
    return np.ones(math.ceil(len(words) * rate), np.int64)

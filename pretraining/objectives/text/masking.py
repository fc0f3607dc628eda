"""Which tokens are masked and what replaces them: pure functions of tokens and generator."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

Array = np.ndarray
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest is kept (Devlin et al. 2018, section 3.1)
RUN_SHARE, RUNS = 0.2, (2, 3)  # of the draws take so many tokens in a row (Dong et al. 2019, "UniLM", section 2.3)


class Words(NamedTuple):
    """What is masked as a whole: the maskable tokens [start, stop) of each word.

    run: how many words follow each other from this one on, itself included, before a token that must not be masked.
    """

    starts: Array  # int [words]
    stops: Array  # int [words]
    run: Array  # int [words]


def find_words(maskable: Array, begins: Array) -> Words:
    """maskable, begins: bool [length], True for a token that may be masked, and for one that begins a word."""
    follows = np.concatenate([[False], maskable[:-1]])
    first = maskable & (begins | ~follows)
    starts = np.flatnonzero(first)
    ends = maskable & ~np.concatenate([maskable[1:] & ~first[1:], [False]])
    stops = np.flatnonzero(ends) + 1
    last_of_run = np.append(starts[1:] != stops[:-1], True)[: len(starts)]
    lasts = np.flatnonzero(last_of_run)
    return Words(starts, stops, lasts[np.searchsorted(lasts, np.arange(len(starts)))] - np.arange(len(starts)) + 1)


def albert_law(longest: int) -> Array:
    """1/n for n-grams of 1 to `longest` words (Lan et al. 2019, "ALBERT", section 4.1)."""
    return 1.0 / np.arange(1, longest + 1)


def choose(words: Words, budget: int, law: Array, rng: np.random.Generator) -> Array:
    """-> positions, int [at most budget], sorted: n-grams of words in random places. An n-gram has n words with
    probability proportional to law[n - 1], up to the end of the run.

    As in google-research/albert, create_pretraining_data.py: an n-gram that would exceed the budget is shortened, one
    that overlaps chosen tokens is skipped. Where the law has one entry this is BERT's whole-word masking.
    """
    taken = np.zeros(int(words.stops[-1]) if len(words.stops) else 0, bool)
    left = budget
    lengths = ngram_lengths(np.minimum(words.run, len(law)), law, rng)
    for word in rng.permutation(len(words.starts)):
        if left == 0:
            break
        start, size = words.starts[word], int(lengths[word])
        while size and words.stops[word + size - 1] - start > left:
            size -= 1
        stop = words.stops[word + size - 1] if size else start
        if not taken[start:stop].any():
            taken[start:stop] = True
            left -= int(stop - start)
    return np.flatnonzero(taken)


def ngram_lengths(longest: Array, law: Array, rng: np.random.Generator) -> Array:
    """longest: int [words] -> n of each word, from 1 to its `longest`, with probability proportional to law[n - 1]."""
    if not len(longest) or longest.max() == 1:
        return longest
    weights = np.cumsum(law[: longest.max()])
    drawn = rng.random(len(longest)) * weights[longest - 1]
    return 1 + np.searchsorted(weights, drawn, side="right")


def choose_runs(maskable: Array, budget: int, rng: np.random.Generator) -> Array:
    """maskable: bool [length] -> positions, int [at most budget], sorted: single tokens in random places, and now and
    then two or three in a row, up to a token that must not be masked.

    As in microsoft/unilm, unilm-v1, seq2seq_loader.py (skipgram_prb 0.2, skipgram_size 3): a run may pass over tokens
    that were chosen before, and where the last one exceeds the budget, any of all are dropped.
    """
    order = rng.permutation(np.flatnonzero(maskable))
    sizes = np.where(rng.random(len(order)) < RUN_SHARE, rng.integers(RUNS[0], RUNS[1] + 1, len(order)), 1)
    stops = np.append(np.flatnonzero(~maskable), len(maskable))
    ends = np.minimum(order + sizes, stops[np.searchsorted(stops, order)])
    taken = np.zeros(len(maskable), bool)
    left = budget
    for start, stop in zip(order, ends, strict=True):
        if left <= 0:
            break
        if not taken[start]:
            left -= int((~taken[start:stop]).sum())
            taken[start:stop] = True
    positions = np.flatnonzero(taken)
    return positions if left >= 0 else np.sort(rng.permutation(positions)[:budget])


def replace(tokens: Array, positions: Array, mask: int, text_ids: Array, rng: np.random.Generator) -> Array:
    """tokens: int [length] -> a copy in which each of `positions` becomes `mask` (80%) or one of `text_ids`
    (10%), or stays (10%)."""
    kind = rng.random(len(positions))
    randoms = rng.choice(text_ids, len(positions))
    corrupted = tokens.copy()
    as_random = kind < MASK_SHARE + RANDOM_SHARE
    corrupted[positions[as_random]] = randoms[as_random]
    corrupted[positions[kind < MASK_SHARE]] = mask
    return corrupted


class Similar(Protocol):
    """data_pipeline.tokenizers.similar.SimilarWords."""

    def of(self, word: Array) -> Array | None:
        """word: int64 [pieces] -> [similar words, pieces]; None where it has none."""
        ...


def replace_words(
    tokens: Array, positions: Array, words: Words, similar: Similar, text_ids: Array, rng: np.random.Generator
) -> Array:
    """tokens: int64 [length]; positions: of whole words -> a copy in which each of these words becomes a similar one
    (80%) or random tokens (10%), or stays (10%); one that has no similar word becomes random tokens in its place.

    Cui et al. 2020, "Revisiting Pre-Trained Models for Chinese Natural Language Processing", section 3.1: words one by
    one, also within an n-gram.
    """
    chosen = np.isin(words.starts, positions)
    corrupted = tokens.copy()
    for start, stop, kind in zip(words.starts[chosen], words.stops[chosen], rng.random(chosen.sum()), strict=True):
        if kind >= MASK_SHARE + RANDOM_SHARE:
            continue
        found = similar.of(tokens[start:stop]) if kind < MASK_SHARE else None
        random = rng.choice(text_ids, stop - start)
        corrupted[start:stop] = random if found is None else found[rng.integers(len(found))]
    return corrupted

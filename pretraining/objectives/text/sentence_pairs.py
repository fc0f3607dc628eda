"""Pairs of segments from spans of sentences: pure functions of documents and generator.

The procedure is that of google-research/bert, create_pretraining_data.py (and google-research/albert for swapped
segments), with three differences:
- Where the second segment is random, the sentences that it replaces are not put back for another pair: which spans
  lose theirs is drawn anew each epoch.
- A random segment is as long as the continuation would be, where BERT's fills the sequence: the length must not give
  the label away.
- A span of a single sentence makes no pair. BERT gives it a random partner, which makes more than half of the pairs
  random (57% of novels at 128 tokens).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from pretraining.labels import IGNORED

IN_ORDER, OTHERWISE = 0, 1


class Pair(NamedTuple):
    """label: IN_ORDER, OTHERWISE, or IGNORED where no pair can be made. second: empty if there is one sentence."""

    first: np.ndarray
    second: np.ndarray
    label: int


def next_sentence(
    own: TokenizedDocument, partner: TokenizedDocument | None, length: int, rng: np.random.Generator
) -> Pair:
    """The second segment continues the first, or half of the time comes from `partner` (Devlin et al. 2018,
    section 3.1). A single sentence makes no pair, and neither does a span without a partner, whose label could only be
    IN_ORDER. Both segments together have at most `length` tokens."""
    first, second = split(own, rng)
    if partner is None or not len(second):
        return Pair(*truncate(first, second, length, rng), IGNORED)
    label = int(rng.random() < 0.5)
    if label == OTHERWISE:
        second = excerpt(partner, len(second), rng)
    return Pair(*truncate(first, second, length, rng), label)


def sentence_order(own: TokenizedDocument, length: int, rng: np.random.Generator) -> Pair:
    """Half of the time the two segments are swapped (Lan et al. 2019, "ALBERT", section 3.1)."""
    first, second = split(own, rng)
    swapped = rng.random() < 0.5
    if swapped and len(second):
        first, second = second, first
    label = int(swapped) if len(second) else IGNORED
    return Pair(*truncate(first, second, length, rng), label)


def split(document: TokenizedDocument, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At a random sentence boundary; of a single sentence the second segment is empty."""
    borders = document.sentences[1:]
    at = int(rng.choice(borders)) if len(borders) else len(document.tokens)
    return document.tokens[:at], document.tokens[at:]


def excerpt(document: TokenizedDocument, target: int, rng: np.random.Generator) -> np.ndarray:
    """Whole sentences from a random one on: as close to `target` tokens as sentences allow, at least one.

    It starts where that many tokens follow, if there is such a place: a short excerpt would reveal that it is not the
    continuation.
    """
    enough = document.sentences[document.sentences + target <= len(document.tokens)]
    start = int(rng.choice(enough)) if len(enough) else 0
    ends = np.append(document.sentences, len(document.tokens))
    ends = ends[ends > start]
    return document.tokens[start : ends[np.abs(ends - start - target).argmin()]]


def truncate(
    first: np.ndarray, second: np.ndarray, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Drops tokens of the longer segment (the second, if equal), from its front or back at random, until both together
    have `length` tokens (create_pretraining_data.py, truncate_seq_pair)."""
    segments, borders = (first, second), [[0, len(first)], [0, len(second)]]
    sizes = [len(first), len(second)]
    while sum(sizes) > length:
        longer = 0 if sizes[0] > sizes[1] else 1
        sizes[longer] -= 1
        if rng.random() < 0.5:
            borders[longer][0] += 1
        else:
            borders[longer][1] -= 1
    return segments[0][slice(*borders[0])], segments[1][slice(*borders[1])]

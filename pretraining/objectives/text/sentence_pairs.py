"""Pairs of segments from whole sentences: pure functions of tokens and generator.

The procedure is that of google-research/bert, create_pretraining_data.py (and google-research/albert for swapped
segments); stream/sentence_packing.py has its first part. Two things differ:
- A random segment is as long as the continuation would be, where BERT's fills the sequence also where the continuation
  would not (at a document's end): the length must not give the label away. Half of the spans that end with their
  document are filled up instead, without a label, so that padding does not grow.
- A span of a single sentence is filled up from another document as BERT's, but without a label. BERT counts it as a
  random pair, which makes more than half of the pairs random (57% of novels at 128 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.sentence_packing import Pairing, PairPart
from pretraining.labels import IGNORED

IN_ORDER, OTHERWISE = 0, 1
SINGLE_RATE = 0.1  # of ELECTRA's sequences are one segment


class Pair(NamedTuple):
    """label: IN_ORDER, OTHERWISE, or IGNORED where no pair can be made. second: empty if there is one sentence."""

    first: np.ndarray
    second: np.ndarray
    label: int


LABELS = {Pairing.NONE: IGNORED, Pairing.CONTINUATION: IN_ORDER, Pairing.RANDOM: OTHERWISE}


def next_sentence(parts: Sequence[PairPart], length: int, rng: np.random.Generator) -> Pair:
    """The second segment continues the first, or half of the time comes from another document (Devlin et al. 2018,
    section 3.1). Both together have at most `length` tokens."""
    if len(parts) == 1:
        return Pair(*truncate(parts[0].tokens, parts[0].tokens[:0], length, rng), IGNORED)
    first, second = parts
    return Pair(*truncate(first.tokens, second.tokens, length, rng), LABELS[second.pairing])


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


def unlabeled_pair(own: TokenizedDocument, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """-> two segments of neighboring sentences, which with [cls] and two [sep] have at most `length` tokens; in one of
    ten cases, and where all sentences fit into half of the length, the second is empty.

    google-research/electra, build_pretraining_dataset.py, _create_example: a sentence joins the first segment while
    that stays below half of the length, and half of the time if it is the first one to exceed it; the others join the
    second. So a short one after a long one may come before it, as in theirs. Half of the length is that of all
    sequences, also for documents that were given a shorter target.
    """
    half = len(own.tokens) + 1 if rng.random() < SINGLE_RATE else (length - 3) // 2
    first, second = own.tokens[:0], own.tokens[:0]
    for sentence in np.split(own.tokens, own.sentences[1:]):
        fits = not len(first) or len(first) + len(sentence) < half
        if fits or (not len(second) and len(first) < half and rng.random() < 0.5):
            first = np.concatenate([first, sentence])
        else:
            second = np.concatenate([second, sentence])
    first = first[: length - 2]
    return first, second[: max(0, length - len(first) - 3)]

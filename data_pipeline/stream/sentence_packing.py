"""Packing whole sentences, as google-research/bert, create_pretraining_data.py, create_instances_from_document does.

A document's sentences are added to a span until it reaches the document's target length, or the document ends; what is
too long is truncated when a sample is made of it. The target is that of all sequences but for some documents, chosen
and given a shorter one by chance. All draws follow a fixed pattern: documents are shuffled under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SentenceSpans:
    """Each sequence is one span. `cut` gives a TokenizedDocument, longer than `length` by a part of its last sentence,
    if at all. Every token stands in exactly one span.

    length: the target, in tokens. short_rate: share of the documents with a target drawn from 2 to `length`.
    """

    length: int
    short_rate: float = 0.1

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SentenceSpansPlan:
        """lengths: int [documents], in tokens."""
        assert sentences is not None
        text = _Text.of(lengths, sentences())
        targets = draw_targets(len(lengths), self.length, self.short_rate, np.random.default_rng(0))
        following = text.following(targets)
        firsts = chain(following)
        return SentenceSpansPlan(text.within(firsts, following[firsts]))

    def cut(self, document: TokenizedDocument, segment: Segment) -> TokenizedDocument:
        first, last = np.searchsorted(document.sentences, [segment.start, segment.stop])
        return TokenizedDocument(
            document.tokens[segment.start : segment.stop], document.sentences[first:last] - segment.start
        )


class SentenceSpansPlan:
    """spans: int64 [sequences, 3]: document, start, stop."""

    def __init__(self, spans: Ints) -> None:
        self.spans, self.num_sequences = spans, len(spans)

    def segments(self, sequence: int) -> list[Segment]:
        return [Segment(*self.spans[sequence].tolist())]


class Pairing(Enum):
    """What a segment is to the one before it."""

    NONE = 0  # it is the first, or nothing is said of them
    CONTINUATION = 1
    RANDOM = 2  # of another document


@dataclass(frozen=True)
class PairSegment(Segment):
    pairing: Pairing


@dataclass(frozen=True)
class PairPart:
    """tokens: [tokens], whole sentences."""

    tokens: npt.NDArray[Any]
    pairing: Pairing


@dataclass(frozen=True)
class SentencePairs:
    """Each sequence is a span that is split at a sentence, any with equal probability. Half of the time the second
    segment is taken from another document of the window, any with equal probability, and the sentences that it replaces
    begin the next span. `cut` gives a PairPart.

    A random segment begins with a random sentence that has enough text after it, if there is one. It fills the sequence
    where the span does, otherwise it is as long as the continuation would be, as nearly as sentences allow: its length
    must not give it away. Spans of a single sentence, and half of those that miss their target since the document ends,
    are filled up to it from another document, but make no pair. Neither does any where there is a single document.
    """

    length: int
    short_rate: float = 0.1

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SentencePairsPlan:
        """lengths: int [documents], in tokens."""
        assert sentences is not None
        rng = np.random.default_rng(0)
        text = _Text.of(lengths, sentences())
        targets = draw_targets(len(lengths), self.length, self.short_rate, rng)
        following, number = text.following(targets), np.arange(len(text.starts))
        misses = text.borders[following] - text.starts < targets[text.document(number)]
        whole = (following - number == 1) | (misses & (rng.random(len(number)) < 0.5))  # is not split
        split = number + 1 + (rng.random(len(number)) * (following - number - 1)).astype(np.int64)
        split[whole] = following[whole]
        alone = len(text.documents) < 2
        random = (rng.random(len(number)) < 0.5) & ~whole & (not alone)
        firsts = chain(np.where(random, split, following))
        split, following, whole, random = (each[firsts] for each in (split, following, whole, random))
        first, second = text.within(firsts, split), text.within(split, following)
        pairing = np.where(random, Pairing.RANDOM.value, Pairing.CONTINUATION.value)
        pairing[whole | alone] = Pairing.NONE.value
        if not alone:
            elsewhere = random | whole
            second[elsewhere] = self._excerpts(text, first, second, targets, elsewhere, rng)
        return SentencePairsPlan(first, second, pairing)

    def cut(self, document: TokenizedDocument, segment: Segment) -> PairPart:
        assert isinstance(segment, PairSegment)
        return PairPart(document.tokens[segment.start : segment.stop], segment.pairing)

    def _excerpts(
        self, text: _Text, first: Ints, second: Ints, targets: Ints, which: np.ndarray, rng: np.random.Generator
    ) -> Ints:
        """-> int64 [sum of which, 3], the segments that stand in the place of `second`."""
        document, a, b = first[which, 0], *((s[:, 2] - s[:, 1])[which] for s in (first, second))
        whole = b == 0
        tokens = np.where(whole, np.maximum(targets[document] - a, 1), b)
        return text.excerpts(text.others(document, rng), tokens, whole | (a + b >= self.length), rng)


class SentencePairsPlan:
    """first, second: int64 [sequences, 3]: document, start, stop. pairing: int [sequences], the value of a Pairing."""

    def __init__(self, first: Ints, second: Ints, pairing: np.ndarray) -> None:
        self.first, self.second, self.pairing = first, second, pairing
        self.num_sequences = len(first)

    def segments(self, sequence: int) -> list[Segment]:
        """The first, and the second unless it is empty."""
        (document, start, stop), other = self.first[sequence].tolist(), self.second[sequence].tolist()
        first = PairSegment(document, start, stop, Pairing.NONE)
        second = PairSegment(other[0], other[1], other[2], Pairing(int(self.pairing[sequence])))
        return [first, second] if second.stop > second.start else [first]


@dataclass(frozen=True)
class _Text:
    """The documents of a window one after another. borders: int64 [sentences + 1], where each sentence starts, then the
    end. begins: int64 [documents + 1], where each document starts, then the end. documents: those with text."""

    borders: Ints
    begins: Ints
    documents: Ints

    @classmethod
    def of(cls, lengths: np.ndarray, starts: np.ndarray) -> _Text:
        begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(np.append(starts, begins[-1]), begins, np.flatnonzero(lengths))

    @property
    def starts(self) -> Ints:
        return self.borders[:-1]

    def document(self, sentences: Ints) -> Ints:
        return np.searchsorted(self.begins, self.borders[sentences], side="right") - 1

    def following(self, targets: Ints) -> Ints:
        """targets: int [documents] -> int64 [sentences], the sentence before which a span from each one on ends."""
        document = self.document(np.arange(len(self.starts)))
        return np.searchsorted(self.borders, np.minimum(self.starts + targets[document], self.begins[document + 1]))

    def within(self, firsts: Ints, lasts: Ints) -> Ints:
        """From sentence to sentence, of one document -> int64 [n, 3]: document, start and stop in it."""
        document = self.document(np.minimum(firsts, len(self.starts) - 1))
        begin = self.begins[document]
        return np.stack([document, self.borders[firsts] - begin, self.borders[lasts] - begin], axis=1)

    def others(self, documents: Ints, rng: np.random.Generator) -> Ints:
        """-> another document with text for each, any with equal probability."""
        drawn = rng.integers(len(self.documents) - 1, size=len(documents))
        return self.documents[drawn + (drawn >= np.searchsorted(self.documents, documents))]

    def excerpts(self, documents: Ints, tokens: Ints, fill: np.ndarray, rng: np.random.Generator) -> Ints:
        """-> int64 [n, 3]: whole sentences of each document, of some `tokens`: at least as many where `fill`, else as
        near as can be, and in both cases at least one sentence."""
        begin, end = (np.searchsorted(self.borders, self.begins[documents + more]) for more in (0, 1))
        enough = np.searchsorted(self.starts, self.begins[documents + 1] - tokens, side="right") - begin
        first = begin + (rng.random(len(documents)) * np.maximum(enough, 1)).astype(np.int64)
        wanted = self.borders[first] + tokens
        last = np.minimum(np.searchsorted(self.borders, wanted), end)
        below = np.maximum(last - 1, first + 1)
        nearer = ~fill & (wanted - self.borders[below] < np.abs(self.borders[last] - wanted))
        return self.within(first, np.where(nearer, below, last))


def draw_targets(documents: int, length: int, short_rate: float, rng: np.random.Generator) -> Ints:
    """-> int64 [documents], in tokens (short_seq_prob)."""
    short = rng.random(documents) < short_rate
    return np.where(short, rng.integers(2, length + 1, documents), length)


def chain(following: Ints) -> Ints:
    """-> 0, following[0], following[following[0]], ..., as long as there is one."""
    found, ends, at = [], following.tolist(), 0
    while at < len(ends):
        found.append(at)
        at = ends[at]
    return np.array(found, np.int64)

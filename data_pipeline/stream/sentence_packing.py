"""Packing whole sentences, as google-research/bert, create_pretraining_data.py, create_instances_from_document does.

A document's sentences are added to a span until it reaches the document's target length, or the document ends; what is
too long is truncated when a sample is made of it. The target is that of all sequences but for some documents, chosen
and given a shorter one by chance. All draws follow a fixed pattern: documents are shuffled under it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts

Ints = npt.NDArray[np.int64]
RANDOM = 0.5  # share of the pairs whose second segment comes from elsewhere
WHOLE = 0.5  # share of the spans that are not split, of those that miss their target


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
        text = Text.of(lengths, sentences())
        targets = draw_targets(len(lengths), self.length, self.short_rate, np.random.default_rng(0))
        return SentenceSpansPlan(text.within(*text.spans(targets)))

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
class _Draws:
    """fp64 [sentences], for a span that begins with each. chance: in [0, 1), decides what becomes of it; 1 and more
    makes no random pair. place: in [0, 1), where it is split. random: share of the pairs that are."""

    chance: np.ndarray
    place: np.ndarray
    random: float

    @property
    def missing_random(self) -> float:
        """Of the spans that miss their target, those that are split are as often random as others."""
        return (1 - WHOLE) * self.random

    def following(self) -> Following:
        """A random segment's span goes on after its first segment."""
        chance, place = self.chance.data, self.place.data  # one number is read faster than of an array
        random, missing_random = self.random, self.missing_random

        def following(first: int, last: int, missing: bool) -> int:
            if last - first > 1 and chance[first] < (missing_random if missing else random):
                return first + 1 + int(place[first] * (last - first - 1))
            return last

        return following

    def decide(self, firsts: Ints, lasts: Ints, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray, Ints]:
        """-> for each span whether its second segment is random, whether it is not split, and where it is."""
        chance, single = self.chance[firsts], lasts - firsts == 1
        random = (chance < np.where(missing, self.missing_random, self.random)) & ~single
        whole = single | (missing & (chance >= self.missing_random) & (chance < self.missing_random + WHOLE))
        splits = firsts + 1 + (self.place[firsts] * (lasts - firsts - 1)).astype(np.int64)
        return random, whole, np.where(whole, lasts, splits)


@dataclass(frozen=True)
class SentencePairs:
    """Each sequence is a span that is split at a sentence, any with equal probability. In `random_rate` of the pairs
    the second segment is taken from another document of the window, any with equal probability, and the sentences that
    it replaces begin the next span. `cut` gives a PairPart.

    A random segment begins with a random sentence that has enough text after it, if there is one. It fills the sequence
    where the span does, otherwise it is as long as the continuation would be, as nearly as sentences allow: its length
    must not give it away. Spans of a single sentence, and half of those that miss their target since the document ends,
    are filled up to it from another document, but make no pair. Neither does any where there is a single document.
    """

    length: int
    short_rate: float = 0.1
    random_rate: float = RANDOM

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SentencePairsPlan:
        """lengths: int [documents], in tokens."""
        assert sentences is not None
        rng = np.random.default_rng(0)
        text = Text.of(lengths, sentences())
        targets = draw_targets(len(lengths), self.length, self.short_rate, rng)
        alone = len(text.documents) < 2
        draws = _Draws(rng.random(len(text.starts)) + alone, rng.random(len(text.starts)), self.random_rate)
        firsts, lasts = text.spans(targets, draws.following())
        missing = text.borders[lasts] - text.starts[firsts] < targets[text.document[firsts]]
        random, whole, splits = draws.decide(firsts, lasts, missing)
        first, second = text.within(firsts, splits), text.within(splits, lasts)
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
        self, text: Text, first: Ints, second: Ints, targets: Ints, which: np.ndarray, rng: np.random.Generator
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
        document, start, stop = self.first[sequence].tolist()
        first = PairSegment(document, start, stop, Pairing.NONE)
        document, start, stop = self.second[sequence].tolist()
        if start == stop:
            return [first]
        return [first, PairSegment(document, start, stop, Pairing(int(self.pairing[sequence])))]


# (first sentence of a span, the one after its last, whether it misses its target) -> the first of the next span
Following = Callable[[int, int, bool], int]


def _next(first: int, last: int, missing: bool) -> int:
    return last


@dataclass(frozen=True)
class Text:
    """The documents of a window one after another, in tokens and in sentences.

    borders: int64 [sentences + 1], the token where each sentence starts, then the end. begins: int64 [documents + 1],
    the token where each document starts, then the end; openings: the same as a number of a sentence. documents: those
    with text. document: int64 [sentences], which one each is of.
    """

    borders: Ints
    begins: Ints
    openings: Ints
    documents: Ints
    document: Ints

    @classmethod
    def of(cls, lengths: np.ndarray, starts: np.ndarray) -> Text:
        begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        openings = np.searchsorted(starts, begins)
        document = np.repeat(np.arange(len(lengths)), np.diff(openings))
        return cls(np.append(starts, begins[-1]), begins, openings, np.flatnonzero(lengths), document)

    @property
    def starts(self) -> Ints:
        return self.borders[:-1]

    def spans(self, targets: Ints, following: Following = _next) -> tuple[Ints, Ints]:
        """targets: int [documents] -> int64 [spans], the first sentence of each, and the one after its last."""
        borders = self.borders.data  # of whose numbers few are read
        openings, wanted = self.openings.tolist(), targets.tolist()
        firsts, lasts = [], []
        for document in self.documents.tolist():
            first, end, target = openings[document], openings[document + 1], wanted[document]
            while first < end:
                last = bisect_left(borders, borders[first] + target, first + 1, end)
                firsts.append(first)
                lasts.append(last)
                first = following(first, last, borders[last] - borders[first] < target)
        return np.array(firsts, np.int64), np.array(lasts, np.int64)

    def within(self, firsts: Ints, lasts: Ints) -> Ints:
        """From sentence to sentence, of one document -> int64 [n, 3]: document, start and stop in it."""
        document = self.document[np.minimum(firsts, len(self.document) - 1)]
        begin = self.begins[document]
        return np.stack([document, self.borders[firsts] - begin, self.borders[lasts] - begin], axis=1)

    def others(self, documents: Ints, rng: np.random.Generator) -> Ints:
        """-> another document with text for each, any with equal probability."""
        drawn = rng.integers(len(self.documents) - 1, size=len(documents))
        return self.documents[drawn + (drawn >= np.searchsorted(self.documents, documents))]

    def excerpts(self, documents: Ints, tokens: Ints, fill: np.ndarray, rng: np.random.Generator) -> Ints:
        """-> int64 [n, 3]: whole sentences of each document, of some `tokens`: at least as many where `fill`, else as
        near as can be, and in both cases at least one sentence."""
        begin, end = self.openings[documents], self.openings[documents + 1]
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

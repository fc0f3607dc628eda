"""Packing documents into sequences: pure functions of the documents' lengths.

A window's documents come in shuffled order; a plan says which segment of which document stands in which sequence.
Nothing is read for a plan, so that any rank can seek to any sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from data_pipeline.shards.text import TokenizedDocument

Document = TypeVar("Document", contravariant=True)
Content = TypeVar("Content", covariant=True)
Whole = TypeVar("Whole")


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of the framed document with this place in the window's shuffled order."""

    document: int
    start: int
    stop: int


class PackingPlan(Protocol):
    @property
    def num_sequences(self) -> int: ...

    def segments(self, sequence: int) -> list[Segment]: ...


class Packing(Protocol[Document, Content]):
    """How an objective wants its documents cut: a plan from their lengths, then each segment from its document.

    Document: what the corpus's reader gives, a TokenizedDocument or an EncodedImage. Content: what `cut` makes of it
    and the objective's `corrupt` takes.
    """

    def plan(self, lengths: np.ndarray) -> PackingPlan:
        """lengths: int [documents], in tokens, in the window's order; ones for images."""
        ...

    def cut(self, document: Document, segment: Segment) -> Content: ...


@dataclass(frozen=True)
class Concatenation:
    """Framed documents (`before` + tokens + `after`) one after another, cut every `stride` tokens into sequences of at
    most `length` tokens. `cut` gives an array of tokens.

    With length = stride + 1 neighbors share one token, and a language model predicts each token exactly once.
    shortest: tokens; a last sequence of fewer is left out.
    """

    length: int
    stride: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    shortest: int = 1

    def plan(self, lengths: np.ndarray) -> ConcatenationPlan:
        """lengths: int [documents], in tokens, unframed."""
        framed = lengths.astype(np.int64) + len(self.before) + len(self.after)
        return ConcatenationPlan(np.concatenate([[0], np.cumsum(framed)]), self.length, self.stride, self.shortest)

    def cut(self, document: TokenizedDocument, segment: Segment) -> np.ndarray:
        tokens = document.tokens
        parts = [np.asarray(self.before, tokens.dtype), tokens, np.asarray(self.after, tokens.dtype)]
        return np.concatenate(parts)[segment.start : segment.stop]


class ConcatenationPlan:
    """starts: int64 [documents + 1], where each framed document starts in the concatenation, then the end of all."""

    def __init__(self, starts: np.ndarray, length: int, stride: int, shortest: int) -> None:
        self.starts, self.length, self.stride = starts, length, stride
        least = max(shortest, length - stride + 1)  # what overlaps stands in the sequence before
        self.num_sequences = max(0, (int(starts[-1]) - least) // stride + 1)

    def segments(self, sequence: int) -> list[Segment]:
        begin = sequence * self.stride
        end = min(begin + self.length, int(self.starts[-1]))
        document = int(np.searchsorted(self.starts, begin, side="right")) - 1
        found = []
        while begin < end:
            first, last = int(self.starts[document]), int(self.starts[document + 1])
            found.append(Segment(document, begin - first, min(end, last) - first))
            begin, document = min(end, last), document + 1
        return found


@dataclass(frozen=True)
class SentenceSpan(Segment):
    """A segment that cut() moves to the starts of sentences.

    next_stop: where the document's next span stops; for its last span, `stop`.
    """

    next_stop: int


@dataclass(frozen=True)
class SentenceSpans:
    """Each sequence is one span of consecutive sentences of a document, some `length` tokens; with `partners` also a
    longer span of another document of the window, where there is one. `cut` gives a TokenizedDocument.

    short_rate: this fraction of the spans has a length drawn from 2 to `length` (google-research/bert,
    create_pretraining_data.py: short_seq_prob). Every token stands in exactly one span. A span begins and ends with
    a sentence, as far as sentences are shorter than spans, and can therefore be longer than `length`.
    """

    length: int
    short_rate: float = 0.1
    partners: bool = False

    def plan(self, lengths: np.ndarray) -> SentenceSpansPlan:
        """lengths: int [documents], in tokens."""
        rng = np.random.default_rng(0)  # the pattern is fixed; documents are shuffled under it
        spans = []
        for document, length in enumerate(lengths.tolist()):
            start = 0
            while start < length:
                short = rng.random() < self.short_rate
                stop = min(length, start + (int(rng.integers(2, self.length + 1)) if short else self.length))
                spans.append((document, start, stop))
                start = stop
        return SentenceSpansPlan(np.array(spans, np.int64).reshape(-1, 3), lengths, self)

    def cut(self, document: TokenizedDocument, segment: Segment) -> TokenizedDocument:
        assert isinstance(segment, SentenceSpan)
        start = _sentence_start(document, segment.start, segment.stop)
        stop = _sentence_start(document, segment.stop, segment.next_stop)
        first, last = np.searchsorted(document.sentences, [start + 1, stop])
        sentences = np.concatenate([[start], document.sentences[first:last]]) - start
        return TokenizedDocument(document.tokens[start:stop], sentences)


class SentenceSpansPlan:
    """spans: int64 [sequences, 3]: document, start and stop before they are moved to the starts of sentences."""

    def __init__(self, spans: np.ndarray, lengths: np.ndarray, packing: SentenceSpans) -> None:
        self.spans, self.lengths, self.packing = spans, lengths, packing
        self.num_sequences = len(spans)

    def segments(self, sequence: int) -> list[Segment]:
        document, start, stop = self.spans[sequence].tolist()
        following = self.spans[sequence + 1].tolist() if sequence + 1 < len(self.spans) else [-1, 0, 0]
        own = SentenceSpan(document, start, stop, following[2] if following[0] == document else stop)
        partner = self._partner(sequence, document) if self.packing.partners else None
        return [own] if partner is None else [own, partner]

    def _partner(self, sequence: int, document: int) -> SentenceSpan | None:
        """From the sequence half a window away or, where that is of the same document, from the next document."""
        number = len(self.spans)
        other = (sequence + number // 2) % number
        if self.spans[other, 0] == document:
            other = int(np.searchsorted(self.spans[:, 0], document, side="right")) % number
        found, start, _ = self.spans[other].tolist()
        if found == document:
            return None
        room = 2 * self.packing.length  # so that most of its sentences have enough text after them
        start = max(0, min(start, int(self.lengths[found]) - room))
        stop = min(int(self.lengths[found]), start + room)
        return SentenceSpan(found, start, stop, stop)


def _sentence_start(document: TokenizedDocument, at: int, before: int) -> int:
    """The first sentence start in [at, before), or `at` where there is none."""
    index = int(np.searchsorted(document.sentences, at))
    if index < len(document.sentences) and document.sentences[index] < before:
        return int(document.sentences[index])
    return at


@dataclass(frozen=True)
class Single:
    """One document a sequence: an image. With `partner`, a second document of the window follows it, half a window
    further, to be mixed into it (mixup, CutMix)."""

    partner: bool = False

    def plan(self, lengths: np.ndarray) -> SinglePlan:
        return SinglePlan(len(lengths), self.partner)

    def cut(self, document: Whole, segment: Segment) -> Whole:
        return document


@dataclass(frozen=True)
class SinglePlan:
    num_sequences: int
    partner: bool

    def segments(self, sequence: int) -> list[Segment]:
        found = [Segment(sequence, 0, 1)]
        if self.partner:
            found.append(Segment((sequence + self.num_sequences // 2) % self.num_sequences, 0, 1))
        return found

"""Packing documents into sequences: pure functions of the lengths of documents and sentences.

A window's documents come in shuffled order; a plan says which segment of which document stands in which sequence.
No text is read for a plan, so that any rank can seek to any sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from data_pipeline.shards.text import TokenizedDocument

Document = TypeVar("Document", contravariant=True)
Content = TypeVar("Content", covariant=True)
Whole = TypeVar("Whole")
# -> int64 [sentences], where the sentences of all documents start, one document after another in the window's order.
# Read from the shards when it is called.
SentenceStarts = Callable[[], np.ndarray]


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

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> PackingPlan:
        """lengths: int [documents], in tokens, in the window's order; ones for images. sentences: of the same."""
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

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> ConcatenationPlan:
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
        return self.between(sequence * self.stride, self.length)

    def between(self, begin: int, length: int) -> list[Segment]:
        """The `length` tokens of the concatenation from `begin` on, or those up to its end."""
        end = min(begin + length, int(self.starts[-1]))
        document = int(np.searchsorted(self.starts, begin, side="right")) - 1
        found = []
        while begin < end:
            first, last = int(self.starts[document]), int(self.starts[document + 1])
            found.append(Segment(document, begin - first, min(end, last) - first))
            begin, document = min(end, last), document + 1
        return found


@dataclass(frozen=True)
class Pieces:
    """One document a sequence: each framed document (`before` + tokens + `after`) is cut every `stride` tokens into
    pieces of at most `length` tokens. `cut` gives an array of tokens.

    shortest: tokens; a document's last piece of fewer is left out, and a document that has no other.
    """

    length: int
    stride: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    shortest: int = 1

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> PiecesPlan:
        """lengths: int [documents], in tokens, unframed."""
        framed = lengths.astype(np.int64) + len(self.before) + len(self.after)
        # a piece that holds what overlaps alone stands in the piece before
        least = max(self.shortest, self.length - self.stride + 1)
        pieces = np.maximum(0, (framed - least) // self.stride + 1)
        return PiecesPlan(framed, np.concatenate([[0], np.cumsum(pieces)]), self.length, self.stride)

    def cut(self, document: TokenizedDocument, segment: Segment) -> np.ndarray:
        return Concatenation(self.length, self.stride, self.before, self.after).cut(document, segment)


class PiecesPlan:
    """framed: int64 [documents], their lengths. firsts: int64 [documents + 1], the sequence of each one's first piece,
    then the number of sequences."""

    def __init__(self, framed: np.ndarray, firsts: np.ndarray, length: int, stride: int) -> None:
        self.framed, self.firsts, self.length, self.stride = framed, firsts, length, stride
        self.num_sequences = int(firsts[-1])

    def segments(self, sequence: int) -> list[Segment]:
        document = int(np.searchsorted(self.firsts, sequence, side="right")) - 1
        start = (sequence - int(self.firsts[document])) * self.stride
        return [Segment(document, start, min(start + self.length, int(self.framed[document])))]


@dataclass(frozen=True)
class Single:
    """One document a sequence: an image. With `partner`, a second document of the window follows it, half a window
    further, to be mixed into it (mixup, CutMix)."""

    partner: bool = False

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SinglePlan:
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

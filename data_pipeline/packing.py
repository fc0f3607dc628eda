"""Packing documents into sequences: pure functions of the documents' lengths.

A window's documents come in shuffled order; a plan says which piece of which document stands in which sequence.
Nothing is read for a plan, so that any rank can seek to any sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Tokens [start, stop) of the framed document with this place in the window's shuffled order."""

    document: int
    start: int
    stop: int


class Plan(Protocol):
    num_sequences: int

    def pieces(self, sequence: int) -> list[Piece]: ...


class Packing(Protocol):
    """How an objective wants its documents cut: a plan from their lengths, then each piece from its document.

    A document is what the corpus' reader gives: a shards.Document of text, say.
    """

    def plan(self, lengths: np.ndarray) -> Plan: ...

    def cut(self, document: Any, piece: Piece) -> Any: ...


@dataclass(frozen=True)
class Concatenation:
    """Framed documents (`before` + tokens + `after`) one after another, cut every `stride` tokens into sequences of at
    most `length` tokens. A piece is an array of tokens.

    With length = stride + 1 neighbours share one token, and a language model predicts each token exactly once.
    """

    length: int
    stride: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def plan(self, lengths: np.ndarray) -> ConcatenationPlan:
        """lengths: int [documents], in tokens, unframed."""
        framed = lengths.astype(np.int64) + len(self.before) + len(self.after)
        return ConcatenationPlan(np.concatenate([[0], np.cumsum(framed)]), self.length, self.stride)

    def cut(self, document: Any, piece: Piece) -> np.ndarray:
        tokens = document.tokens
        parts = [np.asarray(self.before, tokens.dtype), tokens, np.asarray(self.after, tokens.dtype)]
        return np.concatenate(parts)[piece.start : piece.stop]


class ConcatenationPlan:
    """borders: int64 [documents + 1], where each framed document begins in the concatenation."""

    def __init__(self, borders: np.ndarray, length: int, stride: int) -> None:
        self.borders, self.length, self.stride = borders, length, stride
        overlap = length - stride
        self.num_sequences = max(0, -(-(int(borders[-1]) - overlap) // stride))

    def pieces(self, sequence: int) -> list[Piece]:
        begin = sequence * self.stride
        end = min(begin + self.length, int(self.borders[-1]))
        document = int(np.searchsorted(self.borders, begin, side="right")) - 1
        found = []
        while begin < end:
            first, last = int(self.borders[document]), int(self.borders[document + 1])
            found.append(Piece(document, begin - first, min(end, last) - first))
            begin, document = min(end, last), document + 1
        return found


@dataclass(frozen=True)
class Single:
    """One document a sequence: an image, say. With `partner`, a second document of the window follows it, half a
    window further, to be mixed into it."""

    partner: bool = False

    def plan(self, lengths: np.ndarray) -> SinglePlan:
        return SinglePlan(len(lengths), self.partner)

    def cut(self, document: Any, piece: Piece) -> Any:
        return document


@dataclass(frozen=True)
class SinglePlan:
    num_sequences: int
    partner: bool

    def pieces(self, sequence: int) -> list[Piece]:
        found = [Piece(sequence, 0, 1)]
        if self.partner:
            found.append(Piece((sequence + self.num_sequences // 2) % self.num_sequences, 0, 1))
        return found

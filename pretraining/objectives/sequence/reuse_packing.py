"""How XLNet's sequences are cut: text that follows that of the sequence before, and half of the time a second segment
from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Concatenation, ConcatenationPlan, Segment, SentenceStarts

ELSEWHERE = 0.5  # share of the sequences whose second segment does not follow the first


@dataclass(frozen=True)
class Excerpt(Segment):
    """Of another place of the window."""


@dataclass(frozen=True)
class TextPart:
    """tokens: [tokens]. sentences: int, where sentences begin among them. elsewhere: it is an Excerpt."""

    tokens: npt.NDArray[Any]
    sentences: npt.NDArray[np.int64]
    elsewhere: bool


@dataclass(frozen=True)
class ReusePairs:
    """A Packing: documents with their end token, one after another, cut every `stride` tokens into sequences of
    `length`; what is too short for one is left out. Half of the sequences get `excerpt` further tokens, from the
    beginning of a sentence in a place of the window, any with equal probability. `cut` gives a TextPart.

    All draws follow a fixed pattern: documents are shuffled under it.
    """

    length: int
    stride: int
    excerpt: int
    end: int

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> ReusePairsPlan:
        """lengths: int [documents], in tokens, unframed."""
        assert sentences is not None
        inner = Concatenation(self.length, self.stride, after=(self.end,), shortest=self.length).plan(lengths)
        starts = sentences()
        borders = np.cumsum(lengths.astype(np.int64))
        starts = starts + np.searchsorted(borders, starts, side="right")  # an end token for each document before
        rng = np.random.default_rng(0)
        elsewhere = rng.random(inner.num_sequences) < ELSEWHERE
        places = rng.integers(0, max(1, int(inner.starts[-1]) - self.excerpt), inner.num_sequences)
        begins = starts[np.maximum(np.searchsorted(starts, places, side="right") - 1, 0)]
        return ReusePairsPlan(inner, np.where(elsewhere, begins, -1), self.excerpt)

    def cut(self, document: TokenizedDocument, segment: Segment) -> TextPart:
        tokens = np.append(document.tokens, np.asarray(self.end, document.tokens.dtype))[segment.start : segment.stop]
        inside = (document.sentences >= segment.start) & (document.sentences < segment.stop)
        return TextPart(tokens, document.sentences[inside] - segment.start, isinstance(segment, Excerpt))


class ReusePairsPlan:
    """excerpts: int64 [sequences], where the excerpt of each begins in the concatenation, -1 for none."""

    def __init__(self, inner: ConcatenationPlan, excerpts: np.ndarray, length: int) -> None:
        self.inner, self.excerpts, self.length = inner, excerpts, length
        self.num_sequences = inner.num_sequences

    def segments(self, sequence: int) -> list[Segment]:
        own, begin = self.inner.segments(sequence), int(self.excerpts[sequence])
        if begin < 0:
            return own
        return own + [Excerpt(s.document, s.start, s.stop) for s in self.inner.between(begin, self.length)]

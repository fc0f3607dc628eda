"""Packing whole sentences one after another, over borders of documents (Liu et al. 2019, "RoBERTa", section 4.2)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts
from data_pipeline.stream.sentence_packing import Ints, Text


@dataclass(frozen=True)
class WholeSentences:
    """A sequence takes the sentences that follow, of the same document and of the next ones, until one does not fit.
    Every token stands in exactly one sequence. `cut` gives an array of tokens, a document's part of the sequence.

    length: tokens of a sequence at most, with those that the objective adds: `per_sequence` of them, and `per_document`
    for each document's part. A sentence that fits in no sequence is cut.
    """

    length: int
    per_sequence: int
    per_document: int

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> WholeSentencesPlan:
        """lengths: int [documents], in tokens."""
        assert sentences is not None
        text = Text.of(lengths, sentences())
        starts, document = self._pieces(text)
        borders = np.append(starts, text.begins[-1])
        number = np.cumsum(np.append(0, np.diff(document) != 0)) if len(document) else document
        # the cost of a sequence is that of its last piece less that of all before its first
        before = (starts + self.per_document * number).tolist()
        after = borders[1:] + self.per_document * (number + 1)
        firsts, first = [], 0
        while first < len(before):
            firsts.append(first)
            first = bisect_right(after.data, before[first] + self.length - self.per_sequence, first + 1)
        return WholeSentencesPlan(text.begins, borders[[*firsts, len(before)]])

    def cut(self, document: TokenizedDocument, segment: Segment) -> np.ndarray:
        return document.tokens[segment.start : segment.stop]

    def _pieces(self, text: Text) -> tuple[Ints, Ints]:
        """-> where each sentence, or part of one that is too long, starts, and the number of its document."""
        longest = self.length - self.per_sequence - self.per_document
        parts = -(-np.diff(text.borders) // longest)
        within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        return np.repeat(text.starts, parts) + longest * within, np.repeat(text.document, parts)


class WholeSentencesPlan:
    """begins: int64 [documents + 1], the token where each document starts, then the end. borders: int64
    [sequences + 1], the same of sequences."""

    def __init__(self, begins: Ints, borders: Ints) -> None:
        self.begins, self.borders, self.num_sequences = begins, borders, len(borders) - 1

    def segments(self, sequence: int) -> list[Segment]:
        begin, end = self.borders[sequence : sequence + 2].tolist()
        found = []
        while begin < end:
            document = int(np.searchsorted(self.begins, begin, side="right")) - 1  # those without text are passed over
            first, last = self.begins[document : document + 2].tolist()
            found.append(Segment(document, begin - first, min(end, last) - first))
            begin = min(end, last)
        return found

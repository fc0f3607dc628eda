"""Packing the documents of corpus=pairs: a source and its target stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.text import TokenizedDocument, halves
from data_pipeline.stream.packing import Segment, SentenceStarts


class PairOfTexts(NamedTuple):
    """Tokens of both sides, without special ids."""

    source: npt.NDArray[Any]
    target: npt.NDArray[Any]


@dataclass(frozen=True)
class PairPacking:
    """Whole pairs one after another, as many as fit into a sequence of `length` tokens; a pair takes `framing` more
    than its tokens. One that is longer than a sequence loses the ends of its sides, the longer one's first. `cut` gives
    a PairOfTexts."""

    length: int
    framing: int

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> PairPlan:
        """lengths: int [documents], in tokens of both sides."""
        ends = np.cumsum(np.minimum(lengths.astype(np.int64) + self.framing, self.length))
        borders, used = [0], 0
        while borders[-1] < len(ends):
            stop = int(np.searchsorted(ends, used + self.length, side="right"))
            borders.append(stop)
            used = int(ends[stop - 1])
        return PairPlan(lengths, borders)

    def cut(self, document: TokenizedDocument, segment: Segment) -> PairOfTexts:
        source, target = halves(document)
        room = self.length - self.framing
        kept = max(min(len(source), room // 2), room - len(target))
        return PairOfTexts(source[:kept], target[: room - min(kept, len(source))])


class PairPlan:
    """borders: the first document of each sequence, then the end of all."""

    def __init__(self, lengths: np.ndarray, borders: Sequence[int]) -> None:
        self.lengths, self.borders, self.num_sequences = lengths, borders, len(borders) - 1

    def segments(self, sequence: int) -> list[Segment]:
        documents = range(self.borders[sequence], self.borders[sequence + 1])
        return [Segment(document, 0, int(self.lengths[document])) for document in documents]

"""Packing for pairs of texts: rows of a fixed number of tokens on either side, as full as their pairs allow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts


@dataclass(frozen=True)
class PairRows:
    """A Packing: whole pairs, each with an end token on either side, one after another until the next one does not fit
    the source's or the target's side. A pair that fits no row is left out. `cut` gives the pair's TokenizedDocument.

    together: several pairs in a row; else each has one of its own.
    """

    inputs_length: int
    targets_length: int
    together: bool = True

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> PairRowsPlan:
        """lengths: int [documents], tokens of both sides."""
        assert sentences is not None
        rows: list[list[Segment]] = []
        inputs_left = targets_left = 0
        for pair, (source, target) in enumerate(self._sizes(lengths, sentences()).tolist()):
            if source > self.inputs_length or target > self.targets_length:
                continue
            if source > inputs_left or target > targets_left or not self.together:
                rows.append([])
                inputs_left, targets_left = self.inputs_length, self.targets_length
            rows[-1].append(Segment(pair, 0, int(lengths[pair])))
            inputs_left, targets_left = inputs_left - source, targets_left - target
        return PairRowsPlan(rows)

    def cut(self, document: TokenizedDocument, segment: Segment) -> TokenizedDocument:
        return document

    def _sizes(self, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """-> int64 [documents, 2]: tokens of source and target, with their ends. starts: of sources and targets."""
        source = starts[1::2] - starts[::2]
        return np.stack([source, lengths - source], axis=1) + 1


class PairRowsPlan:
    def __init__(self, rows: list[list[Segment]]) -> None:
        self.rows, self.num_sequences = rows, len(rows)

    def segments(self, sequence: int) -> list[Segment]:
        return self.rows[sequence]

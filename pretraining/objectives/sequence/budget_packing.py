"""Packing for encoder-decoders: a sequence ends where its encoder's or its decoder's share might overflow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts

SHORTEST_SEGMENT = 8  # tokens: rather than cut a document to fewer, a sequence ends


@dataclass(frozen=True)
class BudgetPacking:
    """A Packing: as many segments of documents as are sure to fit encoder and decoder once they are corrupted.

    inputs, targets: int [tokens + 1], the most tokens that a segment of so many tokens becomes on either side; neither
    decreases.
    """

    inputs: np.ndarray
    targets: np.ndarray
    inputs_length: int
    targets_length: int

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> BudgetPlan:
        """lengths: int [documents]. Documents and remainders of one token are left out."""
        plan: list[list[Segment]] = []
        current: list[Segment] = []
        inputs_left, targets_left = self.inputs_length, self.targets_length
        for document, length in enumerate(lengths.tolist()):
            start = 0
            while length - start >= 2:
                fits = self._fits(inputs_left, targets_left)
                if current and fits < min(length - start, SHORTEST_SEGMENT):
                    plan.append(current)
                    current = []
                    inputs_left, targets_left = self.inputs_length, self.targets_length
                    continue
                stop = start + min(fits, length - start)
                current.append(Segment(document, start, stop))
                inputs_left -= int(self.inputs[stop - start])
                targets_left -= int(self.targets[stop - start])
                start = stop
        return BudgetPlan([*plan, current] if current else plan)

    def cut(self, document: TokenizedDocument, segment: Segment) -> np.ndarray:
        return document.tokens[segment.start : segment.stop]

    @property
    def longest_segment(self) -> int:
        """Tokens of the longest segment that fits a sequence of its own."""
        return self._fits(self.inputs_length, self.targets_length)

    def _fits(self, inputs_left: int, targets_left: int) -> int:
        """Tokens of the longest segment that fits what is left on both sides."""
        longest = (
            np.searchsorted(self.inputs, inputs_left, "right"),
            np.searchsorted(self.targets, targets_left, "right"),
        )
        return int(min(longest)) - 1


class BudgetPlan:
    def __init__(self, sequences: list[list[Segment]]) -> None:
        self.sequences, self.num_sequences = sequences, len(sequences)

    def segments(self, sequence: int) -> list[Segment]:
        return self.sequences[sequence]

"""How a language model is evaluated: each document by itself, from its beginning, in windows of the model's length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts


@dataclass(frozen=True)
class RollingWindows:
    """A Packing: framed documents (bos + tokens + eos) in windows, each token but bos predicted once; whole windows
    share a sequence of `length` inputs.

    These are the windows of lm-evaluation-harness' loglikelihood_rolling (lm_eval/utils.py, get_rolling_token_windows
    with context_len=1): they follow one another, and a document's last one reaches back to be a full one. `cut` gives
    int64 [2, tokens]: the tokens, and 1 for those that are predicted here, 0 for those that are context. Not
    together: each window has a sequence of its own.
    """

    length: int
    bos: int
    eos: int
    together: bool = True

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> RollingPlan:
        """lengths: int [documents], in tokens, unframed."""
        plan: list[list[Segment]] = []
        left = 0
        for document, length in enumerate(lengths.tolist()):
            for stop in range(self.length + 1, length + 2 + self.length, self.length):
                stop = min(stop, length + 2)
                segment = Segment(document, max(0, stop - self.length - 1), stop)
                inputs = segment.stop - segment.start - 1
                if inputs > left or not self.together:
                    plan.append([])
                    left = self.length
                plan[-1].append(segment)
                left -= inputs
        return RollingPlan(plan)

    def cut(self, document: TokenizedDocument, segment: Segment) -> np.ndarray:
        framed = np.concatenate([[self.bos], document.tokens.astype(np.int64), [self.eos]])
        places = np.arange(segment.start, segment.stop)
        earlier = (segment.stop - 2) // self.length * self.length  # the last token that the window before predicts
        return np.stack([framed[places], places > earlier])


class RollingPlan:
    def __init__(self, sequences: list[list[Segment]]) -> None:
        self.sequences, self.num_sequences = sequences, len(sequences)

    def segments(self, sequence: int) -> list[Segment]:
        return self.sequences[sequence]

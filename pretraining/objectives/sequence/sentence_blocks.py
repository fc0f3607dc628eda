"""Packing for objectives that take one document, or a part of it, as a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts


@dataclass(frozen=True)
class SentenceBlocks:
    """A Packing: as many whole sentences of one document as fit `length` tokens; what is longer than that by itself is
    cut every `length` tokens. Every token stands in exactly one sequence. `cut` gives a TokenizedDocument.

    fairseq's sample_break_mode=complete_doc (facebookresearch/fairseq, fairseq/data/token_block_utils_fast.pyx), with
    which BART's denoising task reads text (fairseq/tasks/denoising.py); there a sentence that is too long is a block of
    its own.

    per_sentence: tokens that the objective adds to each sentence, or part of one, within `length`.
    """

    length: int
    per_sentence: int = 0

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SentenceBlocksPlan:
        """lengths: int [documents], in tokens."""
        assert sentences is not None
        starts = sentences()
        begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        found = []
        for document, (begin, end) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
            first, last = np.searchsorted(starts, [begin, end])
            borders = np.append(starts[first:last], end)
            costs = borders + self.per_sentence * np.arange(len(borders))  # of the text up to there
            while begin < end:
                before = self.per_sentence * (int(np.searchsorted(borders, begin, "right")) - 1)
                whole = int(borders[np.searchsorted(costs, begin + before + self.length, "right") - 1])
                stop = whole if whole > begin else min(begin + self.length - self.per_sentence, end)
                found.append((document, begin, stop))
                begin = stop
        blocks = np.array(found, np.int64).reshape(-1, 3)
        blocks[:, 1:] -= begins[blocks[:, 0], None]
        return SentenceBlocksPlan(blocks)

    def cut(self, document: TokenizedDocument, segment: Segment) -> TokenizedDocument:
        first, last = np.searchsorted(document.sentences, [segment.start, segment.stop])
        starts = np.union1d([0], document.sentences[first:last] - segment.start)  # the part of one begins one
        return TokenizedDocument(document.tokens[segment.start : segment.stop], starts)


class SentenceBlocksPlan:
    """blocks: int64 [sequences, 3]: document, start, stop."""

    def __init__(self, blocks: np.ndarray) -> None:
        self.blocks, self.num_sequences = blocks, len(blocks)

    def segments(self, sequence: int) -> list[Segment]:
        return [Segment(*self.blocks[sequence].tolist())]

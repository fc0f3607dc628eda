"""Packing for text that says its language: mBART's (Liu et al. 2020, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment, SentenceStarts
from pretraining.objectives.sequence.sentence_blocks import SentenceBlocks, SentenceBlocksPlan


@dataclass(frozen=True)
class TextOfLanguage(TokenizedDocument):
    """language: the id of its token."""

    language: int = -1


@dataclass(frozen=True)
class LanguageBlocks:
    """SentenceBlocks, each sentence of which ends with `eos`, as a line does that fairseq has made into tokens
    (facebookresearch/fairseq, fairseq/binarizer.py, append_eos); so does a part of one that was cut. `cut` gives a
    TextOfLanguage of at most `length` tokens, these included."""

    length: int
    language: int
    eos: int

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> SentenceBlocksPlan:
        return self._blocks.plan(lengths, sentences)

    def cut(self, document: TokenizedDocument, segment: Segment) -> TextOfLanguage:
        found = self._blocks.cut(document, segment)
        ends = np.append(found.sentences[1:], len(found.tokens))
        tokens = np.insert(found.tokens, ends, self.eos)
        return TextOfLanguage(tokens, found.sentences + np.arange(len(ends)), language=self.language)

    @property
    def _blocks(self) -> SentenceBlocks:
        return SentenceBlocks(self.length, per_sentence=1)

"""Word borders from the shards on their way to a sample: a bit of each token, which goes wherever the token goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Packing, PackingPlan, Segment, SentenceStarts

WORD = 1 << 32  # above every id


@dataclass(frozen=True)
class Marked:
    """A packing of documents whose tokens are marked where a word begins: int64, the id with or without WORD."""

    packing: Packing[TokenizedDocument, Any]

    def plan(self, lengths: np.ndarray, sentences: SentenceStarts | None = None) -> PackingPlan:
        return self.packing.plan(lengths, sentences)

    def cut(self, document: TokenizedDocument, segment: Segment) -> Any:
        """Raises InputError where the shards have no word borders."""
        if document.words is None:
            raise InputError("objective.words=segmented needs data that was prepared with tokenizer.words")
        tokens = document.tokens.astype(np.int64) + WORD * document.words
        return self.packing.cut(replace(document, tokens=tokens), segment)


def unmarked(tokens: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """-> the ids, and True where a word begins."""
    return tokens % WORD, tokens >= WORD

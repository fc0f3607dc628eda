"""Translation language modeling: masked tokens of a sentence are predicted from it and from its translation (Conneau
and Lample 2019, "Cross-lingual Language Model Pretraining", section 3.3).

As in facebookresearch/XLM: both sentences framed and side by side, positions restart in the second (utils.py,
concat_batches); every token but the first is chosen with the same probability by itself, the frames' as well, and of
those 80% are masked, 10% become another token, 10% stay (trainer.py, mask_out). Unlike there, random tokens are
ordinary ids, never special ones; segments 0 and 1 say which sentence a token is of, where XLM adds an embedding of its
language; several pairs stand in a sequence, and don't see each other.

A mixture may hold corpora of plain text beside pairs: their samples are XLM's masked language modeling, by the same
law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import numpy as np
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegativeFloat, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.pairs import PairOfTexts, PairPacking
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.framing import packed
from pretraining.objectives.text.masked_lm import MaskedLM, MaskedLMConfig
from pretraining.objectives.text.masking import replace

FRAMING = 4  # [cls] source [sep] [cls] target [sep]
SIGMAS = 6  # above the mean: more predictions in a sequence than that come once in a billion


@configclass
class TranslationLMConfig:
    """Predict masked tokens of both texts of a pair, each a translation of the other. For data of corpus=pairs; in a
    mixture beside it also of corpus=text, each document by itself.

    mask_rate: the probability with which each token is to be predicted.
    z_loss: weight of the squared logarithm of the softmax's denominator, which the training loss then holds.
    """

    name: Literal["translation_lm"]
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    z_loss: NonNegativeFloat = 0.0


class TranslationLM(MaskedLM):
    """A sample is MaskedLM's without pairs of segments: `documents` numbers the pairs, `segments` their two texts."""

    def __init__(self, config: TranslationLMConfig, spec: SampleSpec) -> None:
        """Raises InputError where sequences are too short, or positions cannot restart."""
        if not spec.packs_documents:
            raise InputError(
                "objective=translation_lm restarts positions at each sentence and keeps pairs apart, which this "
                "model cannot"
            )
        masked = MaskedLMConfig("masked_lm", mask_rate=config.mask_rate, pairing="none", z_loss=config.z_loss)
        super().__init__(masked, spec)

    def packing(self) -> Packing:
        return PairPacking(self.length, FRAMING)

    def packing_of(self, corpus: str, kind: str) -> Packing:
        return super().packing() if kind == "text" else self.packing()

    def corrupt(self, segments: Sequence[object], rng: np.random.Generator) -> Sample:
        """segments: PairOfTexts; of plain text arrays of tokens."""
        if isinstance(segments[0], PairOfTexts):
            sample = self._side_by_side(cast("Sequence[PairOfTexts]", segments))
        else:
            sample = packed(cast("Sequence[np.ndarray]", segments), self.cls, self.sep)
        tokens = sample["tokens"]
        chosen = rng.random(len(tokens)) < self.config.mask_rate
        chosen[np.diff(sample["documents"], prepend=-1) > 0] = False  # the first token of each pair
        positions = np.flatnonzero(chosen)[: self.max_predictions]
        return sample | {
            "tokens": replace(tokens, positions, self.mask, self.text_ids, rng),
            "masked_positions": positions,
            "labels": tokens[positions],
        }

    def _side_by_side(self, pairs: Sequence[PairOfTexts]) -> Sample:
        framed = [(self._framed(pair.source), self._framed(pair.target)) for pair in pairs]
        lengths = np.array([[len(text) for text in pair] for pair in framed])
        return {
            "tokens": np.concatenate([text for pair in framed for text in pair]),
            "segments": np.repeat(np.tile([0, 1], len(pairs)), lengths.reshape(-1)),
            "positions": np.concatenate([np.arange(n) for n in lengths.reshape(-1)]),
            "documents": np.repeat(np.arange(len(pairs)), lengths.sum(1)),
        }

    def _predictions(self, tokens: int) -> int:
        """The most that a sequence of so many tokens has; the last ones beyond it are not predicted."""
        rate = self.config.mask_rate
        return min(tokens, math.ceil(rate * tokens + SIGMAS * math.sqrt(tokens * rate * (1 - rate))))

    def _framed(self, text: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.cls], text, [self.sep]]).astype(np.int64)

"""Translation: write the target of a pair whose source the encoder reads (Vaswani et al. 2017, "Attention Is All You
Need", sections 5.1, 5.4 and 6.1; for any encoder-decoder).

As published, a batch is a number of tokens, not of pairs: a row holds as many pairs as fit, each masked from the others
and with positions of its own, so that train.global_batch_size x data.seq_len tokens of either side are a batch. A model
that cannot keep them apart is given one pair in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Fraction, NonNegative, Positive, configclass, unused_with
from data_pipeline.loader import Sample
from data_pipeline.shards.text import TokenizedDocument, halves
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.models import EncoderDecoderWithHead
from pretraining.objectives.sequence.decoding import beam_search
from pretraining.objectives.sequence.encoder_decoder import EncoderDecoderObjective, documents_of, joined
from pretraining.objectives.sequence.pair_rows import PairRows

SHORTEST_SEQUENCE = 8
LONGER = 50  # tokens that a translation may have more than its source: section 6.1
SHOWN_PAIRS = 4  # that a demonstration writes out
SEARCHED = 32  # pairs that are translated at once


@configclass
class TranslationConfig:
    """Write the translation of what the encoder reads; for data of corpus=pairs.

    label_smoothing: share of each target that is spread evenly over the whole vocabulary, in training alone; the
        validation loss has none.
    targets_length: tokens of the targets in a row; null means data.seq_len. A pair that fits no row is left out.
    beams: of the search, for samples and BLEU.
    length_penalty: alpha of the search: 0 favors short translations.
    bleu_pairs: pairs of the validation data that are translated and scored at each evaluation, as valid_bleu; 0 for
        none. Other ranks wait meanwhile, train.timeout_seconds at most.
    bleu_tokenize: how sacreBLEU cuts the texts: 13a is WMT's, zh is for Chinese.
    """

    name: Literal["translation"]
    label_smoothing: Fraction = 0.1
    targets_length: Positive | None = None
    beams: Annotated[int, Field(ge=1, le=256)] = 4
    length_penalty: Annotated[float, Field(ge=0.0, le=10.0)] = 0.6
    bleu_pairs: NonNegative = 0
    bleu_tokenize: Annotated[Literal["13a", "intl", "zh", "char"], unused_with("bleu_pairs", 0)] = "13a"


class Translation(EncoderDecoderObjective[TokenizedDocument]):
    """A document of a sample is a pair. The decoder begins with pad."""

    terms = {"translation": 1.0}
    text_term = "translation"
    decoder_start = "pad"

    def __init__(self, config: TranslationConfig, spec: SampleSpec) -> None:
        """Raises InputError where rows are too short."""
        assert spec.tokenizer is not None
        super().__init__(spec.tokenizer, spec.seq_len, config.targets_length or spec.seq_len)
        self.config, self.packs = config, spec.packs_documents
        self.scored_samples, self.label_smoothing = config.bleu_pairs, config.label_smoothing
        for key, length in (("data.seq_len", self.inputs_length), ("objective.targets_length", self.targets_length)):
            if length < SHORTEST_SEQUENCE:
                raise InputError(f"objective=translation needs {key} of at least {SHORTEST_SEQUENCE}, not {length}")

    def for_evaluation(self) -> Self:
        """Raises InputError where sacreBLEU is wanted and not installed; an export does without."""
        if self.config.bleu_pairs and find_spec("sacrebleu") is None:
            raise InputError(
                f"objective.bleu_pairs={self.config.bleu_pairs} needs sacreBLEU: pip install 'pretraining[translation]'"
            )
        return self

    def packing(self) -> PairRows:
        return PairRows(self.inputs_length, self.targets_length, together=self.packs)

    def corrupt(self, segments: Sequence[TokenizedDocument], rng: np.random.Generator) -> Sample:
        pairs = [halves(pair) for pair in segments]
        sources = [np.append(source, self.eos).astype(np.int64) for source, _ in pairs]
        targets = [np.append(target, self.eos).astype(np.int64) for _, target in pairs]
        return joined(sources, targets, self.pad)

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("pad", "eos"))

    def describe(self, sample: Sample) -> str:
        """What the encoder reads and the decoder writes, pair by pair."""
        lines = []
        for source, target in documents_of(sample):
            lines += [f"source: {self.text(source)}", f"target: {self.text(target)}"]
        return "\n".join(lines)

    def demonstrate(self, model: EncoderDecoderWithHead, demonstration: Demonstration) -> str:
        """Validation pairs, and what the model makes of their sources by beam search."""
        pairs = [pair for sample in demonstration.samples for pair in documents_of(sample)]
        shown = pairs[:SHOWN_PAIRS]
        written = self._translated(model, [source for source, _ in shown], demonstration.longest)
        lines = [
            f"source: {self.tokenizer.decode(source)}\n  target: {self.tokenizer.decode(target)}\n  written: {text}"
            for (source, target), text in zip(shown, written, strict=True)
        ]
        score = self.accuracy_sentence(model, demonstration.samples, f"of {len(pairs)} targets")
        return "\n\n".join([*lines, score])

    def scores(self, model: EncoderDecoderWithHead, samples: Sequence[Sample]) -> dict[str, float]:
        """sacreBLEU (Post 2018, "A Call for Clarity in Reporting BLEU Scores") of the first bleu_pairs pairs."""
        pairs = [pair for sample in samples for pair in documents_of(sample)][: self.config.bleu_pairs]
        if not pairs:
            return {}
        from sacrebleu import corpus_bleu

        written = self._translated(model, [source for source, _ in pairs])
        references = [self.tokenizer.decode(target) for _, target in pairs]
        return {"bleu": float(corpus_bleu(written, [references], tokenize=self.config.bleu_tokenize).score)}

    def _translated(
        self, model: EncoderDecoderWithHead, sources: Sequence[Sequence[int]], longest: int | None = None
    ) -> list[str]:
        """The texts that beam search finds, of at most LONGER tokens more than their sources, and `longest` in all."""
        found: list[str] = []
        most = min(longest or self.targets_length, self.targets_length)
        for first in range(0, len(sources), SEARCHED):
            some = sources[first : first + SEARCHED]
            lengths = [min(len(source) + LONGER, most) for source in some]
            written = beam_search(
                model, some, self.pad, self.eos, lengths, self.config.beams, self.config.length_penalty
            )
            found += [self.tokenizer.decode(tokens) for tokens in written]
        return found

"""Denoising for encoder-decoders: T5's span corruption, prefix language modeling, UL2's mixture of denoisers.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning", sections 3.1.4 and 3.2; Tay et al. 2022, "UL2:
Unifying Language Learning Paradigms", section 3.1.

As published, documents are joined without a mark, cut into rows that fill the encoder, and corrupted across their
borders, and attention sees the whole row (google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py,
reduce_concat_tokens and split_tokens). There 128 documents are joined at a time, here those of a window: a shorter row
comes once a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegativeFloat, Positive, configclass, used_with
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.models import EncoderDecoderWithHead
from pretraining.objectives.sequence.budget_packing import SHORTEST_SEGMENT, BudgetPacking
from pretraining.objectives.sequence.decoding import greedy
from pretraining.objectives.sequence.encoder_decoder import EncoderDecoderObjective, documents_of, joined
from pretraining.objectives.sequence.noise import Denoiser, Prefix, Spans, solve_lengths

UL2_MODES = 3  # the last sentinels stand for UL2's mode tokens [R], [X] and [S]
SHOWN_SAMPLES = 3  # that a demonstration writes out


@configclass
class SpanCorruptionConfig:
    """Write what is missing from the text that the encoder reads.

    mode: span is T5's span corruption; prefix_lm splits each segment in two; ul2 draws one of seven denoisers for each
        segment and puts a mode token before it. How long inputs and targets become with prefix_lm and ul2 is not known
        when documents are cut: each segment is given room for the most, and what it does not use is padding.
    noise_density: with mode=span, the share of tokens that are taken out (near 1, a segment that fills the encoder
        would have no bounded length).
    mean_span_length: with mode=span, tokens of a span on average.
    targets_length: the most tokens that the decoder writes (null: as many as the noise needs for a full encoder).
    documents: joined cuts rows out of all documents, one after another, and corrupts each row as one segment, across
        the documents' borders, as T5 was trained; apart makes a segment of each document, or of a part of it, with
        sentinels from the first one on and an end of its own, and masks keep the segments of a row apart.
    z_loss: weight of the squared logarithm of the softmax's denominator, which the training loss then holds; T5 was
        trained with 1e-4.
    """

    name: Literal["span_corruption"]
    mode: Literal["span", "prefix_lm", "ul2"] = "span"
    noise_density: Annotated[float, Field(gt=0.0, le=0.9), used_with("mode", "span")] = 0.15
    mean_span_length: Annotated[float, Field(ge=1.0), used_with("mode", "span")] = 3.0
    targets_length: Positive | None = None
    documents: Literal["joined", "apart"] = "joined"
    z_loss: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class ModeDenoiser:
    """A denoiser of the mixture. mode: the first token of the inputs, as a place counted from the last sentinel."""

    denoiser: Denoiser
    mode: int | None = None

    def lengths(self, n: int) -> tuple[int, int]:
        """-> the most inputs and targets that n tokens become, end tokens and mode token included."""
        inputs, targets = self.denoiser.lengths(n)
        return inputs + 1 + (self.mode is not None), targets + 1


def mixture(config: SpanCorruptionConfig) -> list[ModeDenoiser]:
    """Drawn from with equal probability. UL2: table 1 of the paper; S writes a quarter of the tokens on average. A span
    of 64 at a density of 0.15 is the only one of an input of up to 512 tokens, and so always stands at its end
    (T5's preprocessors.py has random_roll against that)."""
    if config.mode == "span":
        return [ModeDenoiser(Spans(config.noise_density, config.mean_span_length))]
    if config.mode == "prefix_lm":
        return [ModeDenoiser(Prefix(1.0))]
    regular, sequential, extreme = (3, 1, 2)
    return [
        ModeDenoiser(Spans(0.15, 3.0), regular),
        ModeDenoiser(Spans(0.15, 8.0), regular),
        ModeDenoiser(Prefix(0.5), sequential),
        ModeDenoiser(Spans(0.5, 3.0), extreme),
        ModeDenoiser(Spans(0.5, 8.0), extreme),
        ModeDenoiser(Spans(0.15, 64.0), extreme),
        ModeDenoiser(Spans(0.5, 64.0), extreme),
    ]


class SpanCorruption(EncoderDecoderObjective[np.ndarray]):
    """The decoder begins with pad, T5's start token. With documents=joined a sample is one document."""

    terms = {"span_corruption": 1.0}
    text_term = "span_corruption"
    decoder_start = "pad"

    def __init__(self, config: SpanCorruptionConfig, spec: SampleSpec) -> None:
        """Raises InputError where the lengths leave no room for a segment, or there are too few sentinels."""
        assert spec.tokenizer is not None
        tokenizer = spec.tokenizer
        if config.documents == "apart" and not spec.packs_documents:
            raise InputError(
                "objective.documents=apart: this model does not keep the documents of a sequence apart; use "
                "objective.documents=joined"
            )
        self.config, self.z_loss, self.all_sentinels = config, config.z_loss, tokenizer.sentinels
        self.mixture = mixture(config)
        reserved = UL2_MODES if config.mode == "ul2" else 0
        self.sentinels = self.all_sentinels[: len(self.all_sentinels) - reserved]
        self.longest, solved = solve_lengths(self._most, spec.seq_len)
        super().__init__(tokenizer, spec.seq_len, config.targets_length or solved)
        self._check()

    def packing(self) -> Concatenation | BudgetPacking:
        if self.config.documents == "apart":
            return self._budget()
        longest = self._budget().longest_segment
        return Concatenation(longest, longest, shortest=2)  # a single token has no place for noise

    def _budget(self) -> BudgetPacking:
        most = np.array([(1, 1), (1, 1), *(self._most(n) for n in range(2, self.longest + 1))])
        assert (np.diff(most, axis=0) >= 0).all()
        return BudgetPacking(most[:, 0], most[:, 1], self.inputs_length, self.targets_length)

    def corrupt(self, segments: Sequence[np.ndarray], rng: np.random.Generator) -> Sample:
        if self.config.documents == "joined":
            segments = [np.concatenate(segments)]
        parts = [self._corrupt_segment(segment.astype(np.int64), rng) for segment in segments]
        return joined([a for a, _ in parts], [b for _, b in parts], self.pad)

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("pad", "eos"), sentinels=True)

    def describe(self, sample: Sample) -> str:
        """What the encoder reads and the decoder writes, segment by segment."""
        lines = []
        for read, written in documents_of(sample):
            lines += [f"inputs: {self.text(read)}", f"targets: {self.text(written)}"]
        return "\n".join(lines)

    def demonstrate(self, model: EncoderDecoderWithHead, demonstration: Demonstration) -> str:
        """Validation text with spans taken out, what stood there, and what the model writes for them."""
        samples = demonstration.samples
        length = demonstration.bounded(self.targets_length)
        shown = [self._filled(model, sample, length) for sample in samples[:SHOWN_SAMPLES]]
        unscored = [self.eos, *self.all_sentinels]
        score = self.accuracy_sentence(model, samples, f"in the spans of {len(samples)} samples", unscored)
        return "\n\n".join([*shown, score])

    def _filled(self, model: EncoderDecoderWithHead, sample: Sample, length: int) -> str:
        """The first document of a sample, and up to `length` tokens that the model writes for it."""
        inputs, labels = next(documents_of(sample))
        written = greedy(model, inputs, self.pad, self.eos, length, set(self.all_sentinels))
        truth, guess = self._spans(labels), self._spans(written)
        lines = [f"  {name}: {text!r}, written {guess.get(name, '')!r}" for name, text in truth.items()]
        return "\n".join([f"inputs: {self.text(inputs)}", *lines])

    def _spans(self, ids: Iterable[int]) -> dict[str, str]:
        """-> {"[SENTINEL 0]": the text after it, ...}."""
        spans: dict[str, list[int]] = {}
        name = ""
        for token in ids:
            if token in self.all_sentinels:
                name = self.text([token])
                spans[name] = []
            elif token != self.eos:
                spans.setdefault(name, []).append(token)
        return {name: self.tokenizer.decode(tokens) for name, tokens in spans.items()}

    def _most(self, n: int) -> tuple[int, int]:
        """-> the most inputs and targets that n tokens become, whichever denoiser is drawn."""
        inputs, targets = zip(*(m.lengths(n) for m in self.mixture), strict=True)
        return max(inputs), max(targets)

    def _corrupt_segment(self, tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """-> (inputs, labels), end tokens included."""
        chosen = self.mixture[int(rng.integers(len(self.mixture)))]
        parts = chosen.denoiser.corrupt(tokens, self.sentinels, rng)
        mode = [] if chosen.mode is None else [self.all_sentinels[-chosen.mode]]
        return np.array([*mode, *parts.inputs, self.eos]), np.array([*parts.targets, self.eos])

    def _check(self) -> None:
        needed = max(m.denoiser.sentinels(self.longest) for m in self.mixture)
        if needed > len(self.sentinels):
            longer = " or a larger objective.mean_span_length" if self.config.mode == "span" else ""
            raise InputError(
                f"objective.mode={self.config.mode} with data.seq_len={self.inputs_length} needs {needed} "
                f"sentinels, but there are {len(self.sentinels)}: a smaller data.seq_len{longer} needs fewer"
            )
        longest = self._budget().longest_segment
        if longest < SHORTEST_SEGMENT:
            raise InputError(
                f"data.seq_len={self.inputs_length} with objective.targets_length={self.targets_length} holds at most "
                f"{longest} tokens of a document; at least {SHORTEST_SEGMENT} are needed"
            )

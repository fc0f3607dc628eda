"""BART: write a whole document from one that was corrupted (Lewis et al. 2019, "BART: Denoising Sequence-to-Sequence
Pre-training for Natural Language Generation, Translation, and Comprehension", sections 2.2 and 4; Liu et al. 2020,
"Multilingual Denoising Pre-training", for mBART's rates).

A sequence is a document, or as many whole sentences of one as fit, alone in its row. As in the authors' code
(facebookresearch/fairseq, fairseq/data/denoising_dataset.py) sentences are permuted first, then tokens are taken out,
then the document is rotated; the target is <s> text </s>, and the decoder begins with </s>. Not as there: a sentence
begins where the prepared data says, not after a full stop.

With language_tokens it is mBART's (the same repository, fairseq/tasks/multilingual_denoising.py with add_lang_token):
each sentence ends with </s>, which counts as one of its tokens, the text is <s> sentence </s> sentence </s> <language>,
and the decoder begins with <language>, then <s>. The paper's figure 1 and transformers' MBartTokenizer have no <s>.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Fraction, Probability, configclass, unused_with, used_with
from data_pipeline.loader import Sample
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Packing
from data_pipeline.tokenizers.export import Frame
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.models import EncoderDecoderWithHead
from pretraining.objectives.sequence.decoding import greedy
from pretraining.objectives.sequence.encoder_decoder import EncoderDecoderObjective
from pretraining.objectives.sequence.language_blocks import LanguageBlocks, TextOfLanguage
from pretraining.objectives.sequence.sentence_blocks import SentenceBlocks
from pretraining.objectives.sequence.text_noise import (
    Infill,
    Ints,
    Substitutes,
    delete_words,
    mask_words,
    permute_sentences,
    rotate,
)

SHORTEST_SEQUENCE = 8
SHOWN_SAMPLES = 3  # that a demonstration writes out
# One file frames texts of all languages: the token of the language is the second text
LANGUAGE_FRAME = Frame("bos $A eos", "bos $A eos $B")


@configclass
class DenoisingConfig:
    """Write the text that the encoder reads corrupted.

    noise: infill replaces spans by one mask each, and inserts masks where there is nothing; mask and delete take single
        tokens; none leaves all of them.
    rate: share of the tokens that are taken out, rounded up. Spans overlap, and that is not made good: 0.3 removes 27%.
    mean_span_length: with noise=infill, tokens of a span on average (Poisson), from 0.1 to 16.
    whole_words: rate and spans count words, which are taken out whole.
    random_rate: share of the masks for which a random token stands instead.
    permuted_sentences: share of a document's sentences that change places with each other.
    rotated_documents: share of the documents that begin at a random token.
    language_tokens: each corpus of a mixture is a language by its name, as in data.sources={en_XX: DIR, de_DE: DIR}, of
        which the tokenizer has a token (tokenizer.languages): its texts end with it, and the decoder begins with it.
    """

    name: Literal["denoising"]
    noise: Literal["infill", "mask", "delete", "none"] = "infill"
    rate: Annotated[float, Field(gt=0.0, lt=1.0), unused_with("noise", "none")] = 0.3
    mean_span_length: Annotated[float, Field(ge=0.1, le=16.0), used_with("noise", "infill")] = 3.0
    whole_words: Annotated[bool, unused_with("noise", "none")] = False
    random_rate: Annotated[Fraction, used_with("noise", "infill", "mask")] = 0.0
    permuted_sentences: Probability = 1.0
    rotated_documents: Probability = 0.0
    language_tokens: bool = False

    def __post_init__(self) -> None:
        if self.noise == "none" and not self.permuted_sentences and not self.rotated_documents:
            raise ValueError("noise=none with permuted_sentences=0 and rotated_documents=0 leaves nothing to be undone")


class Denoising(EncoderDecoderObjective[TokenizedDocument]):
    """A sample, each int64: inputs [read], decoder_inputs and labels [written]. It is one document."""

    terms = {"denoising": 1.0}
    text_term = "denoising"
    decoder_start = "eos"
    frame = Frame("bos $A eos", "bos $A eos eos $B eos")

    def __init__(self, config: DenoisingConfig, spec: SampleSpec) -> None:
        """Raises InputError where sequences are too short."""
        assert spec.tokenizer is not None
        if spec.seq_len < SHORTEST_SEQUENCE:
            raise InputError(
                f"objective=denoising needs sequences of at least {SHORTEST_SEQUENCE} tokens, not {spec.seq_len}"
            )
        tokenizer = spec.tokenizer
        super().__init__(tokenizer, spec.seq_len, spec.seq_len)
        self.config, self.bos = config, tokenizer.bos
        text_ids = np.flatnonzero(tokenizer.is_text)
        self.substitutes = Substitutes(tokenizer.mask, text_ids, config.random_rate)
        self.words = tokenizer.words if config.whole_words else None
        self.infill = Infill(config.rate, config.mean_span_length)
        self.languages = tokenizer.languages if config.language_tokens else {}
        if config.language_tokens:
            self.decoder_start, self.frame = "language", LANGUAGE_FRAME

    def packing(self) -> SentenceBlocks:
        return SentenceBlocks(self.inputs_length - 2)

    def packing_of(self, corpus: str, kind: str) -> Packing:
        if not self.config.language_tokens:
            return self.packing()
        if not corpus:
            raise InputError(
                "objective.language_tokens=true needs data=mixture, each corpus of which is a language: "
                "data.sources={en_XX: DIR, de_DE: DIR}"
            )
        if corpus not in self.languages:
            raise InputError(
                f"data.sources.{corpus}: objective.language_tokens=true, but the tokenizer has no token of a language "
                f"{corpus}; it has {', '.join(self.languages) or 'none'}. pretrain-data reserves them by "
                "tokenizer.languages=[en_XX,de_DE]"
            )
        return LanguageBlocks(self.inputs_length - 2, self.languages[corpus], self.eos)

    def corrupt(self, segments: Sequence[TokenizedDocument], rng: np.random.Generator) -> Sample:
        (document,) = segments
        tokens = document.tokens.astype(np.int64)
        noised = permute_sentences(tokens, document.sentences, self.config.permuted_sentences, rng)
        noised = self._taken_out(noised, rng)
        if rng.random() < self.config.rotated_documents:
            noised = rotate(noised, rng)
        assert isinstance(document, TextOfLanguage) == self.config.language_tokens
        end = document.language if isinstance(document, TextOfLanguage) else self.eos
        return {
            "inputs": np.concatenate([[self.bos], noised, [end]]),
            "decoder_inputs": np.concatenate([[end, self.bos], tokens]),
            "labels": np.concatenate([[self.bos], tokens, [end]]),
        }

    def _taken_out(self, tokens: Ints, rng: np.random.Generator) -> Ints:
        kind, rate = self.config.noise, self.config.rate
        words = np.arange(len(tokens)) if self.words is None else np.flatnonzero(self.words.starts(tokens))
        if kind == "infill":
            return self.infill(tokens, words, self.substitutes, self.inputs_length - 2, rng)
        if kind == "mask":
            return mask_words(tokens, words, rate, self.substitutes, rng)
        return delete_words(tokens, words, rate, rng) if kind == "delete" else tokens

    def collate(self, samples: Sequence[Sample]) -> Sample:
        # A sample is one document, so it has no document numbers; a batch needs them to mark its padding.
        return super().collate(
            [
                {**s, "input_documents": np.zeros_like(s["inputs"]), "target_documents": np.zeros_like(s["labels"])}
                for s in samples
            ]
        )

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("pad", "bos", "eos", "mask"), languages=bool(self.languages))

    def describe(self, sample: Sample) -> str:
        return f"inputs: {self.text(sample['inputs'])}\ntargets: {self.text(sample['labels'])}"

    def demonstrate(self, model: EncoderDecoderWithHead, demonstration: Demonstration) -> str:
        """Corrupted validation text, and what the model writes for it."""
        samples = demonstration.samples
        length = demonstration.bounded(self.inputs_length)
        shown = []
        for sample in samples[:SHOWN_SAMPLES]:
            start, stop = int(sample["decoder_inputs"][0]), int(sample["labels"][-1])
            written = greedy(model, sample["inputs"].tolist(), start, stop, length, set())
            truth = sample["labels"][: length + 1].tolist()
            shown.append(
                f"inputs: {self.text(sample['inputs'])}\n  text: {self.text(truth)}\n  written: {self.text(written)}"
            )
        score = self.accuracy_sentence(
            model, samples, f"of {len(samples)} texts", [self.bos, self.eos, *self.languages.values()]
        )
        return "\n\n".join([*shown, score])

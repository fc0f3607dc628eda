"""Masked language modeling, with or without a task on pairs of segments (Devlin et al. 2018, "BERT", section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegativeFloat, PositiveFloat, configclass, unused_with, used_with
from data_pipeline.loader import Sample
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Concatenation, Packing, Pieces
from data_pipeline.stream.sentence_packing import PairPart, SentencePairs, SentenceSpans
from data_pipeline.stream.whole_sentences import WholeSentences
from data_pipeline.stream.word_marks import Marked, unmarked
from data_pipeline.tokenizers.similar import SimilarWords
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import HorizonEncoder, TokenEncoderWithHeads
from pretraining.objectives.padding import pad_to
from pretraining.objectives.samples import on_device_of
from pretraining.objectives.text.framing import contiguous, packed, paired
from pretraining.objectives.text.horizons import (
    ALL_SEGMENTS,
    Mask,
    bidirectional,
    draw_mask,
    mask_of,
    random_rate,
    under_mask,
)
from pretraining.objectives.text.masking import albert_law, choose, choose_runs, find_words, replace, replace_words
from pretraining.objectives.text.sentence_pairs import IN_ORDER, Pair, next_sentence, sentence_order

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import TokenEncoder
    from pretraining.parallel.layers import Layers

LONGEST_NGRAM = 3  # where no law is given
SHORTEST_SEQUENCE = 8
SHOWN_SAMPLES = 4  # that a demonstration writes out


@configclass
class MaskedLMConfig:
    """Predict masked tokens and, by `pairing`, how two segments belong together.

    masking: what is masked at once: single tokens, whole words, n-grams of up to three words, or with skipgram tokens
        of which a fifth begin a run of two or three (UniLM).
    words: spelled finds words in how they are written; segmented takes those that tokenizer.words found when the data
        was prepared (Chinese has no spaces).
    ngram_law: how often n-grams of 1, 2, ... words are drawn, relative to each other; null is 1, 1/2 and 1/3 (ALBERT);
        MacBERT has 0.4, 0.3, 0.2, 0.1.
    replacement: of what is masked 80% becomes the mask, or with similar for each word one that is used similarly, from
        the table that `pretrain-data similar` made (MacBERT); in both cases 10% is random and 10% stays.
    mask_rate: share of a sequence's tokens that are to be predicted, special ones counted as BERT counts them, and with
        skipgram not as UniLM does; only text is.
    pairing: next_sentence (BERT) and sentence_order (ALBERT) build each sequence from two segments and add a loss of
        their own; none packs text by `packing`; a model that cannot keep documents apart is given one in a sequence.
    packing: of sequences without pairs. documents fills them, cutting documents anywhere; doc_sentences takes whole
        sentences; in both each document has its own first and last token and no attention to the others in the
        sequence. full_sentences takes whole sentences over borders of documents, with a separator between these and
        attention across (Liu et al. 2019, "RoBERTa", section 4.2: DOC-SENTENCES, FULL-SENTENCES).
    masks: what tokens see, as shares of the samples: all of them (bidirectional), those before (left_to_right) or
        after (right_to_left), or with sequence_to_sequence the first segment and what is before in the second, whose
        last token is masked too. Only a bidirectional sample has a label of pairs (Dong et al. 2019, "UniLM").
    masked_lm_weight: of the loss of masked tokens in the total.
    pair_weight: of the loss of pairs in the total. Not 0, which would leave a head to decay alone: pairing=none has
        none.
    z_loss: weight of the squared logarithm of the softmax's denominator, which the training loss then holds; T5 was
        trained with 1e-4.
    """

    name: Literal["masked_lm"]
    masking: Literal["token", "whole_word", "ngram", "skipgram"] = "token"
    words: Annotated[Literal["spelled", "segmented"], used_with("masking", "whole_word", "ngram")] = "spelled"
    ngram_law: Annotated[list[PositiveFloat] | None, used_with("masking", "ngram")] = None
    replacement: Annotated[Literal["mask", "similar"], used_with("masking", "whole_word", "ngram")] = "mask"
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    pairing: Literal["next_sentence", "sentence_order", "none"] = "next_sentence"
    packing: Annotated[Literal["documents", "doc_sentences", "full_sentences"], used_with("pairing", "none")] = (
        "documents"
    )
    masks: Annotated[dict[Mask, PositiveFloat], used_with("pairing", "next_sentence")] = Field(
        default_factory=bidirectional
    )
    masked_lm_weight: PositiveFloat = 1.0
    pair_weight: Annotated[PositiveFloat, unused_with("pairing", "none")] = 1.0
    z_loss: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.pairing != "none" and "bidirectional" not in self.masks:
            raise ValueError(
                f"masks={list(self.masks)} with pairing={self.pairing}: pairs are predicted under the mask "
                "bidirectional alone, so that their head would only decay; give it a share"
            )


Content = np.ndarray | PairPart | TokenizedDocument


class MaskedLM(Objective[Content, TokenEncoderWithHeads]):
    """A sample: tokens, segments, positions, documents, int64 [length]; masked_positions and labels, int64
    [predictions]; and pair_label, int64 [], where there are pairs: 0 in order, 1 not, IGNORED where there is no second
    segment.
    """

    unit = Unit.TOKENS
    text_term = "masked_lm"

    def __init__(self, config: MaskedLMConfig, spec: SampleSpec) -> None:
        """Raises InputError where sequences are too short, or a table of similar words is missing."""
        assert spec.tokenizer is not None
        if spec.seq_len < SHORTEST_SEQUENCE:
            raise InputError(
                f"objective=masked_lm needs sequences of at least {SHORTEST_SEQUENCE} tokens, not {spec.seq_len}"
            )
        self.config, self.length, self.tokenizer = config, spec.seq_len, spec.tokenizer
        self.packs = spec.packs_documents
        if config.pairing == "none" and config.packing == "doc_sentences" and not self.packs:
            raise InputError("objective.packing=doc_sentences needs a model that keeps documents of a sequence apart")
        tokenizer = spec.tokenizer
        self.pad, self.cls, self.sep, self.mask = tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask
        self.is_text = tokenizer.is_text
        self.text_ids = np.flatnonzero(self.is_text)
        by_words = config.masking in ("whole_word", "ngram")
        self.words = tokenizer.words if by_words and config.words == "spelled" else None
        self.law = albert_law(LONGEST_NGRAM if config.masking == "ngram" else 1)
        if config.ngram_law:
            self.law = np.array(config.ngram_law)
        self.similar = _similar_words(tokenizer) if config.replacement == "similar" else None
        self.masks = {mask: share / sum(config.masks.values()) for mask, share in config.masks.items()}
        self.max_predictions = self._predictions(spec.seq_len)
        self.terms = {"masked_lm": config.masked_lm_weight}
        if config.pairing != "none":
            self.terms[config.pairing] = config.pair_weight

    def packing(self) -> Packing:
        packing = self._packing()
        return Marked(packing) if self.config.words == "segmented" else packing

    def _packing(self) -> Packing:
        if self.config.pairing == "next_sentence":
            return SentencePairs(self.length - 3, random_rate=random_rate(self.masks))
        if self.config.pairing == "sentence_order":
            return SentenceSpans(self.length - 3)
        if self.config.packing == "full_sentences":  # [cls], and a [sep] after each document
            return WholeSentences(self.length, per_sequence=1, per_document=1)
        if self.config.packing == "doc_sentences":
            return WholeSentences(self.length, per_sequence=0, per_document=2)
        if not self.packs:
            return Pieces(self.length - 2, self.length - 2, shortest=SHORTEST_SEQUENCE)
        # two tokens short: a segment that was cut gets a [cls] or [sep] of its own
        return Concatenation(self.length - 2, self.length - 2, before=(self.cls,), after=(self.sep,))

    def corrupt(self, segments: Sequence[Content], rng: np.random.Generator) -> Sample:
        """segments: arrays of tokens (pairing=none; framed with packing=documents), PairParts (next_sentence), a span
        of sentences (sentence_order)."""
        sample = self._sample(segments, rng)
        begins = None
        if self.config.words == "segmented":
            sample["tokens"], begins = unmarked(sample["tokens"])
        ends = bool(self.has_horizons and mask_of(sample) == "sequence_to_sequence")  # a target learns to stop
        return sample | self._masked(sample["tokens"], rng, begins, ends)

    def _sample(self, segments: Sequence[Content], rng: np.random.Generator) -> Sample:
        if self.config.pairing == "none":
            frame = contiguous if self.config.packing == "full_sentences" else packed
            return frame(cast("Sequence[np.ndarray]", segments), self.cls, self.sep)
        if not self.has_horizons:
            return paired(self._pair(segments, rng), self.cls, self.sep)
        parts = cast("Sequence[PairPart]", segments)
        return under_mask(draw_mask(self.masks, parts, rng), parts, self.length, self.cls, self.sep, rng)

    @property
    def has_horizons(self) -> bool:
        """Whether tokens of some samples see a part of theirs."""
        return list(self.masks) != ["bidirectional"]

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays: lengths padded to seq_len, predictions to what mask_rate allows at that length; and
        pair_labels int64 [batch] where there are pairs. Padding is of document -1 and sees all of that."""
        fill = {"tokens": self.pad, "segments": 0, "positions": 0, "documents": -1}
        if self.has_horizons:
            fill |= {"first": 0, "last": self.length - 1}
        batch = {name: pad_to(self.length, [s[name] for s in samples], value) for name, value in fill.items()}
        for name, value in (("masked_positions", 0), ("labels", IGNORED)):
            batch[name] = pad_to(self.max_predictions, [s[name] for s in samples], value)
        if self.config.pairing != "none":
            batch["pair_labels"] = np.array([s["pair_label"] for s in samples])
        return batch

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        counts = {"masked_lm": sum(len(s["labels"]) for s in samples)}
        if self.config.pairing != "none":
            counts[self.config.pairing] = sum(int(s["pair_label"] != IGNORED) for s in samples)
        return counts

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["labels"][s["labels"] != IGNORED]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: TokenEncoder, layers: Layers) -> dict[str, nn.Module]:
        """Without pairs there is no pooler and no pair head. Raises InputError for a model that cannot see as `masks`
        asks."""
        if self.has_horizons and model.horizon_segments < ALL_SEGMENTS:
            raise InputError(f"objective.masks needs model.segments={ALL_SEGMENTS}, of BERT or one of its relatives")
        heads = {"head": model.make_masked_head(layers, self.used_ids(), self.config.z_loss)}
        return heads if self.config.pairing == "none" else {**heads, "pair_head": model.make_pair_head()}

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("pad", "cls", "sep", "mask"))

    def loss(self, model: TokenEncoderWithHeads, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch.nn.functional as F

        hidden = encode(model, batch)
        masked = model.head(hidden, batch["masked_positions"], batch["labels"])
        if self.config.pairing == "none":
            return {"masked_lm": masked}
        pairs = model.pair_head(hidden).float()
        pair_loss = F.cross_entropy(pairs, batch["pair_labels"], ignore_index=IGNORED, reduction="sum")
        return {"masked_lm": masked, self.config.pairing: pair_loss}

    def flops_per_unit(self, model: TokenEncoderWithHeads) -> float:
        return model.flops_per_token(self.length)

    def describe(self, sample: Sample) -> str:
        """What the model sees, and what it has to predict."""
        lines = [f"{len(sample['tokens'])} tokens, {len(sample['labels'])} to predict"]
        mask = mask_of(sample) if self.has_horizons else "bidirectional"
        if self.has_horizons:
            lines[0] += f", {mask}"
        if "pair_label" in sample and mask == "bidirectional":
            lines[0] += f", {self.config.pairing}: {_pair_name(int(sample['pair_label']), self.config.pairing)}"
        lines += [self._text(sample["tokens"]), "targets:"]
        for position, label in zip(sample["masked_positions"], sample["labels"], strict=True):
            shown = int(sample["tokens"][position])
            seen = "kept" if shown == label else repr(self._text([shown]))
            lines.append(f"  {position:4d}  {self._text([label])!r}  <- {seen}")
        return "\n".join(lines)

    def demonstrate(self, model: TokenEncoderWithHeads, demonstration: Demonstration) -> str:
        """Validation text with masks, the three likeliest fillings of each, and how many of them are right."""
        samples = demonstration.samples
        batch = self.collate(samples)
        best, labels = best_fillings(model, batch, 3), batch["labels"]
        right = (best == labels[..., None])[labels != IGNORED]
        shown = [self._filled(*each) for each in zip(samples[:SHOWN_SAMPLES], best, strict=False)]
        score = (
            f"of {len(right)} masked tokens in {len(samples)} samples the first choice is right "
            f"for {right[:, 0].mean():.1%}, one of three for {right.any(1).mean():.1%}"
        )
        return "\n\n".join([*shown, score])

    def _predictions(self, tokens: int) -> int:
        return max(1, round(self.config.mask_rate * tokens))

    def _pair(self, segments: Sequence[Content], rng: np.random.Generator) -> Pair:
        length = self.length - 3  # without [cls] and two [sep]
        if self.config.pairing == "next_sentence":
            return next_sentence(cast("Sequence[PairPart]", segments), length, rng)
        return sentence_order(cast("TokenizedDocument", segments[0]), length, rng)

    def _masked(
        self, tokens: np.ndarray, rng: np.random.Generator, begins: np.ndarray | None = None, ends: bool = False
    ) -> Sample:
        """begins: bool [length], where words begin (None: as they are spelled). ends: the last token may be masked."""
        maskable = self.is_text[tokens]
        text = int(maskable.sum())
        if ends:
            maskable[-1] = True
        if begins is None:
            begins = np.ones_like(maskable) if self.words is None else self.words.starts(tokens)
        words = find_words(maskable, begins)
        if self.config.masking == "skipgram":
            positions = choose_runs(maskable, self._predictions(text), rng)
        else:
            positions = choose(words, self._predictions(len(tokens)), self.law, rng)
        if self.similar is None:
            corrupted = replace(tokens, positions, self.mask, self.text_ids, rng)
        else:
            corrupted = replace_words(tokens, positions, words, self.similar, self.text_ids, rng)
        return {"tokens": corrupted, "masked_positions": positions, "labels": tokens[positions]}

    def _filled(self, sample: Sample, fillings: np.ndarray) -> str:
        lines = [self._text(sample["tokens"])]
        for label, ids in zip(sample["labels"], fillings, strict=False):
            guesses = ", ".join(repr(self._text([i])) for i in ids)
            lines.append(f"  {self._text([label])!r}: {guesses}")
        return "\n".join(lines)

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)


def encode(model: TokenEncoderWithHeads, batch: Mapping[str, Tensor]) -> Tensor:
    """-> hidden states [batch, length, hidden] of a collated batch."""
    inputs = (batch["tokens"], batch["segments"], batch["positions"], batch["documents"])
    if "first" not in batch:
        return model(*inputs)
    return cast("HorizonEncoder", model)(*inputs, (batch["first"], batch["last"]))


def best_fillings(model: TokenEncoderWithHeads, batch: Sample, count: int) -> np.ndarray:
    """-> the `count` likeliest ids at each of the masked positions, best first, int [samples, predictions, count]."""
    import torch

    tensors = on_device_of(model, batch)
    model.eval()
    with torch.no_grad():
        hidden = encode(model, tensors)
        logits = model.head.logits(hidden, tensors["masked_positions"])
    return logits.topk(count).indices.cpu().numpy()


def _similar_words(tokenizer: Tokenizer) -> SimilarWords:
    if tokenizer.similar is None:
        raise InputError(
            "objective.replacement=similar needs a table of similar words: `pretrain-data similar output=DIR` makes one"
        )
    return tokenizer.similar


def _pair_name(label: int, pairing: str) -> str:
    if label == IGNORED:
        return "no second segment"
    names = {"next_sentence": ("the continuation", "random"), "sentence_order": ("in order", "swapped")}
    return names[pairing][label != IN_ORDER]

"""Masked language modeling, with or without a task on pairs of segments (Devlin et al. 2018, "BERT", section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegativeFloat, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation, Packing, SentenceSpans
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.samples import Demonstration
from pretraining.objectives.text.causal_lm import IGNORED, pad_to
from pretraining.objectives.text.masking import choose, find_words, replace
from pretraining.objectives.text.sentence_pairs import IN_ORDER, UNLABELED, Pair, next_sentence, sentence_order

if TYPE_CHECKING:
    from torch import nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers

LONGEST_NGRAM = {"token": 1, "whole_word": 1, "ngram": 3}
SHORTEST_SEQUENCE = 8
READABLE = 4  # samples that a demonstration spells out


@configclass
class MaskedLMConfig:
    """masking: single tokens, whole words, or n-grams of up to three words. mask_rate: of the tokens of text.

    pairing: next_sentence (BERT) and sentence_order (ALBERT) make each sequence of two segments and have a loss of
    their own; none packs documents, each with its own first and last token and no attention to the others
    (Liu et al. 2019, "RoBERTa", section 4.2: DOC-SENTENCES, several to a sequence).
    """

    name: Literal["masked_lm"]
    masking: Literal["token", "whole_word", "ngram"] = "token"
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    pairing: Literal["next_sentence", "sentence_order", "none"] = "next_sentence"
    masked_lm_weight: NonNegativeFloat = 1.0
    pair_weight: NonNegativeFloat = 1.0

    def build(self, tokenizer: Tokenizer, max_seq_len: int) -> MaskedLM:
        if max_seq_len < SHORTEST_SEQUENCE:
            raise InputError(f"objective=masked_lm needs sequences of {SHORTEST_SEQUENCE} tokens, not {max_seq_len}")
        return MaskedLM(self, tokenizer, max_seq_len)


class MaskedLM:
    """A sample: tokens, segments, positions, documents, int64 [length]; masked_positions and labels, int64
    [predictions]; and pair_label, int64 [], where there are pairs: 0 in order, 1 not, IGNORED where there is no second
    segment. collate pads lengths to max_seq_len and predictions to what mask_rate allows at that length.
    """

    def __init__(self, config: MaskedLMConfig, tokenizer: Tokenizer, max_seq_len: int) -> None:
        self.config, self.length = config, max_seq_len
        self.pad, self.cls, self.sep, self.mask = tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask
        self.ordinary = tokenizer.ordinary
        self.ordinary_ids = np.flatnonzero(self.ordinary)
        self.words = None if config.masking == "token" else tokenizer.words
        self.max_predictions = self._predictions(max_seq_len)
        self.terms = {"masked_lm": config.masked_lm_weight}
        if config.pairing != "none":
            self.terms[config.pairing] = config.pair_weight

    def for_evaluation(self) -> MaskedLM:
        return self

    def packing(self) -> Packing:
        if self.config.pairing == "none":  # two less, for the ends that a document is given where it is cut
            return Concatenation(self.length - 2, self.length - 2, before=(self.cls,), after=(self.sep,))
        return SentenceSpans(self.length - 3, partners=self.config.pairing == "next_sentence")

    def corrupt(self, pieces: list[Any], rng: np.random.Generator) -> Sample:
        """pieces: what the packing cut: arrays of framed tokens, or the span and its partner."""
        if self.config.pairing == "none":
            sample = self._packed(pieces)
        elif self.config.pairing == "next_sentence":
            sample = self._paired(next_sentence(pieces[0], pieces[1] if pieces[1:] else None, self.length - 3, rng))
        else:
            sample = self._paired(sentence_order(pieces[0], self.length - 3, rng))
        return sample | self._masked(sample["tokens"], rng)

    def collate(self, samples: list[Sample]) -> Sample:
        fill = {"tokens": self.pad, "segments": 0, "positions": 0, "documents": -1}
        batch = {name: pad_to(self.length, [s[name] for s in samples], value) for name, value in fill.items()}
        for name, value in (("masked_positions", 0), ("labels", IGNORED)):
            batch[name] = pad_to(self.max_predictions, [s[name] for s in samples], value)
        if self.config.pairing != "none":
            batch["pair_labels"] = np.array([s["pair_label"] for s in samples])
        return batch

    def counts(self, samples: list[Sample]) -> dict[str, int]:
        counts = {"masked_lm": sum(len(s["labels"]) for s in samples)}
        if self.config.pairing != "none":
            counts[self.config.pairing] = sum(int(s["pair_label"] != UNLABELED) for s in samples)
        return counts

    def tokens(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        """Without pairs there is no pooler and no pair head."""
        from pretraining.models.heads import MaskedTokenHead, PairHead

        heads: dict[str, nn.Module] = {"head": MaskedTokenHead(model, layers)}
        return heads if self.config.pairing == "none" else {**heads, "pair_head": PairHead(model)}

    def loss(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """-> {term: sum over the batch}, fp32 scalars with a gradient."""
        import torch.nn.functional as F

        hidden = model(batch["tokens"], batch["segments"], batch["positions"], batch["documents"])
        masked = model.head(hidden, batch["masked_positions"], batch["labels"])
        if self.config.pairing == "none":
            return {"masked_lm": masked}
        pairs = model.pair_head(hidden).float()
        pair_loss = F.cross_entropy(pairs, batch["pair_labels"], ignore_index=UNLABELED, reduction="sum")
        return {"masked_lm": masked, self.config.pairing: pair_loss}

    def demonstrate(self, model: Any, context: Demonstration) -> str:
        """Validation text with masks, the three likeliest fillings of each, and how many of them are right."""
        assert context.tokenizer is not None
        batch = self.collate(context.samples)
        best, labels = best_fillings(model, batch, 3), batch["labels"]
        right = (best == labels[..., None])[labels != IGNORED]
        shown = [
            self._filled(sample, fillings, context.tokenizer)
            for sample, fillings in zip(context.samples[:READABLE], best, strict=False)
        ]
        score = (
            f"of {len(right)} masked tokens in {len(context.samples)} samples the first choice is right "
            f"for {right[:, 0].mean():.1%}, one of three for {right.any(1).mean():.1%}"
        )
        return "\n\n".join([*shown, score])

    def describe(self, sample: Sample, tokenizer: Tokenizer) -> str:
        """One sample as text: what the model sees, what it has to say."""
        lines = [f"{len(sample['tokens'])} tokens, {len(sample['labels'])} to predict"]
        if "pair_label" in sample:
            lines[0] += f", {self.config.pairing}: {_pair_name(int(sample['pair_label']), self.config.pairing)}"
        lines += [decode_with_specials(tokenizer, sample["tokens"]), "targets:"]
        for position, label in zip(sample["masked_positions"], sample["labels"], strict=True):
            shown = int(sample["tokens"][position])
            seen = "kept" if shown == label else repr(decode_with_specials(tokenizer, [shown]))
            lines.append(f"  {position:4d}  {decode_with_specials(tokenizer, [label])!r}  <- {seen}")
        return "\n".join(lines)

    def _predictions(self, tokens: int) -> int:
        return max(1, round(self.config.mask_rate * tokens))

    def _packed(self, pieces: list[np.ndarray]) -> Sample:
        """Every piece with its own ends; a lone end without text is left out."""
        framed = [self._framed(piece) for piece in pieces]
        framed = [tokens for tokens in framed if len(tokens) > 2] or framed[:1]
        lengths = [len(tokens) for tokens in framed]
        tokens = np.concatenate(framed)
        return {
            "tokens": tokens,
            "segments": np.zeros_like(tokens),
            "positions": np.concatenate([np.arange(n) for n in lengths]),
            "documents": np.repeat(np.arange(len(lengths)), lengths),
        }

    def _framed(self, piece: np.ndarray) -> np.ndarray:
        before = [] if piece[0] == self.cls else [self.cls]
        after = [] if piece[-1] == self.sep else [self.sep]
        return np.concatenate([before, piece, after]).astype(np.int64)

    def _paired(self, pair: Pair) -> Sample:
        """[cls] first [sep] second [sep], segments 0 and 1."""
        second = [*pair.second, self.sep] if len(pair.second) else []
        tokens = np.array([self.cls, *pair.first, self.sep, *second], np.int64)
        segments = np.repeat([0, 1], [len(tokens) - len(second), len(second)])
        return {
            "tokens": tokens,
            "segments": segments,
            "positions": np.arange(len(tokens)),
            "documents": np.zeros_like(tokens),
            "pair_label": np.array(pair.label),
        }

    def _masked(self, tokens: np.ndarray, rng: np.random.Generator) -> Sample:
        maskable = self.ordinary[tokens]
        begins = np.ones_like(maskable) if self.words is None else self.words.starts(tokens)
        words = find_words(maskable, begins)
        positions = choose(words, self._predictions(int(maskable.sum())), LONGEST_NGRAM[self.config.masking], rng)
        return {
            "tokens": replace(tokens, positions, self.mask, self.ordinary_ids, rng),
            "masked_positions": positions,
            "labels": tokens[positions],
        }

    def _filled(self, sample: Sample, fillings: np.ndarray, tokenizer: Tokenizer) -> str:
        lines = [decode_with_specials(tokenizer, sample["tokens"])]
        for label, ids in zip(sample["labels"], fillings, strict=False):
            guesses = ", ".join(repr(decode_with_specials(tokenizer, [i])) for i in ids)
            lines.append(f"  {decode_with_specials(tokenizer, [label])!r}: {guesses}")
        return "\n".join(lines)


def best_fillings(model: Any, batch: Sample, count: int) -> np.ndarray:
    """-> the `count` likeliest ids at each of the masked positions, best first, int [samples, predictions, count]."""
    import torch

    device = next(model.parameters()).device
    tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
    model.eval()
    with torch.no_grad():
        hidden = model(*(tensors[name] for name in ("tokens", "segments", "positions", "documents")))
        logits = model.head.logits(hidden, tensors["masked_positions"])
    return logits.topk(count).indices.cpu().numpy()


def _pair_name(label: int, pairing: str) -> str:
    if label == UNLABELED:
        return "no second segment"
    names = {"next_sentence": ("the continuation", "random"), "sentence_order": ("in order", "swapped")}
    return names[pairing][label != IN_ORDER]

"""Permutation language modeling (Yang et al. 2019, "XLNet", sections 2.2 to 2.5; zihangdai/xlnet, data_utils.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, Positive, configclass
from data_pipeline.loader import Sample
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import PermutedEncoderWithHead
from pretraining.objectives.padding import pad_to
from pretraining.objectives.samples import on_device_of
from pretraining.objectives.sequence.permutation import order_of, places_and_ranks, spans
from pretraining.objectives.sequence.reuse_packing import ReusePairs, TextPart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers

SPECIALS = 3  # [sep], [sep], [cls]
SHORTEST_PART = 8  # tokens
CLS_SEGMENT = 2
SHOWN_SAMPLES = 4  # that a demonstration writes out


@configclass
class PermutationLMConfig:
    """Predict some tokens of a sequence, each from those that an order drawn for the sample puts before it. A sequence
    is a first part of text and, after it, a [sep] b [sep] [cls]: a continues the text, b follows it or, half of the
    time, comes from elsewhere, without a label.

    reuse: tokens of the first part; null means half of data.seq_len. The next sequence continues after it, with its
        hidden states in memory.
    warm: parts of as many tokens before a sequence that only make memory; as few as hold model.memory tokens are enough
        for a full one.
    predict_one_in: tokens for each that is predicted (K of the paper).
    longest_span: tokens of the longest span that is predicted.
    perm_size: tokens that are permuted among each other; null means objective.reuse.
    """

    name: Literal["permutation_lm"]
    reuse: Positive | None = None
    warm: NonNegative = 2
    predict_one_in: Positive = 6
    longest_span: Positive = 5
    perm_size: Positive | None = None


class PermutationLM(Objective[TextPart, PermutedEncoderWithHead]):
    """A sample, each int64: tokens, segments, places, ranks [warm x reuse + seq_len], see models.base.PermutedEncoder;
    targets, places in the sequence after the warm parts, and labels [predictions].

    Not as published: half of the authors' batches are read backward; a document's end is our end token; their b is
    longer by a sentence before a and b are cut to fit, and both ends of a random one are a sentence's.
    """

    terms = {"permutation_lm": 1.0}
    unit = Unit.TOKENS
    text_term = "permutation_lm"

    def __init__(self, config: PermutationLMConfig, spec: SampleSpec) -> None:
        """Raises InputError where the parts of a sequence are too short, or no whole number of objective.perm_size."""
        assert spec.tokenizer is not None
        self.config, self.length, self.tokenizer = config, spec.seq_len, spec.tokenizer
        self.reuse = config.reuse or spec.seq_len // 2
        self.perm_size = config.perm_size or self.reuse
        self.text = spec.seq_len - self.reuse - SPECIALS  # tokens of a and b
        self.sep, self.cls = self.tokenizer.sep, self.tokenizer.cls
        self.predictions = spec.seq_len // config.predict_one_in
        self._check()

    def packing(self) -> ReusePairs:
        length = (self.config.warm + 1) * self.reuse + self.text
        return ReusePairs(length, self.reuse, self.text, self.tokenizer.eos)

    def corrupt(self, segments: Sequence[TextPart], rng: np.random.Generator) -> Sample:
        text, borders = joined([part for part in segments if not part.elsewhere])
        other, _ = joined([part for part in segments if part.elsewhere])
        first = (self.config.warm + 1) * self.reuse
        a, b = self._pair(text[first:], borders[borders > first] - first, other, rng)
        parts = [
            *np.split(text[:first], self.config.warm + 1),
            np.concatenate([a, [self.sep], b, [self.sep, self.cls]]),
        ]
        arrays = [self._ordered(part, number, rng) for number, part in enumerate(parts)]
        tokens = np.concatenate(parts)
        targets = np.concatenate([arrays[-2][2], arrays[-1][2] + self.reuse])
        return {
            "tokens": tokens,
            "segments": np.repeat([0, 1, CLS_SEGMENT], [first + len(a) + 1, len(b) + 1, 1]),
            "places": np.concatenate([places for places, _, _ in arrays]),
            "ranks": np.concatenate([ranks for _, ranks, _ in arrays]),
            "targets": targets,
            "labels": tokens[self.config.warm * self.reuse :][targets],
        }

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays, predictions padded to those of seq_len."""
        batch = {name: np.stack([s[name] for s in samples]) for name in ("tokens", "segments", "places", "ranks")}
        for name, fill in (("targets", 0), ("labels", IGNORED)):
            batch[name] = pad_to(self.predictions, [s[name] for s in samples], fill)
        return batch

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {"permutation_lm": sum(len(s["labels"]) for s in samples)}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["labels"][s["labels"] != IGNORED]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        """Without the warm parts, which are of sequences before."""
        return self.length

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_token_head(layers, self.used_ids())}

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("eos", "cls", "sep"))

    def loss(self, model: PermutedEncoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"permutation_lm": model.head(self._hidden(model, batch), batch["labels"])}

    def flops_per_unit(self, model: PermutedEncoderWithHead) -> float:
        return model.flops_of_sample(self.length, self.predictions, self.reuse, self.config.warm) / self.length

    def describe(self, sample: Sample) -> str:
        """The text, and each token that is predicted, in the order of the sequence: how many others it is told."""
        skip = self.config.warm * self.reuse
        tokens, places, ranks = (sample[name][skip:] for name in ("tokens", "places", "ranks"))
        lines = [f"{skip} tokens make memory only: {self._text(sample['tokens'][:skip])!r}"] if skip else []
        lines += [f"{len(tokens)} tokens, {len(sample['labels'])} to predict", self._text(tokens), "targets:"]
        for at, label in zip(sample["targets"], sample["labels"], strict=True):
            part = slice(0, self.reuse) if at < self.reuse else slice(self.reuse, None)
            seen = int(((ranks[at] > places[part]) | (places[part] < 0)).sum()) + (
                self.reuse if at >= self.reuse else 0
            )
            lines.append(f"  {at:4d}  {self._text([label])!r}  <- from {seen} tokens of the sequence")
        return "\n".join(lines)

    def demonstrate(self, model: PermutedEncoderWithHead, demonstration: Demonstration) -> str:
        """Validation text, the three likeliest tokens for each that is predicted, and how many of them are right."""
        import torch

        samples = demonstration.samples
        batch = on_device_of(model, self.collate(samples))
        model.eval()
        with torch.no_grad():
            best = model.head.logits(self._hidden(model, batch)).topk(3).indices.cpu().numpy()
        labels = batch["labels"].cpu().numpy()
        right = (best == labels[..., None])[labels != IGNORED]
        shown = [self._guessed(*each) for each in zip(samples[:SHOWN_SAMPLES], best, strict=False)]
        score = (
            f"of {len(right)} tokens in {len(samples)} samples the first choice is right for {right[:, 0].mean():.1%}, "
            f"one of three for {right.any(1).mean():.1%}"
        )
        return "\n\n".join([*shown, score])

    def _hidden(self, model: PermutedEncoderWithHead, batch: Mapping[str, Tensor]) -> Tensor:
        """-> [batch, predictions, features]."""
        tokens, segments, places, ranks = (batch[name] for name in ("tokens", "segments", "places", "ranks"))
        return model(tokens, segments, places, ranks, batch["targets"], self.reuse, self.config.warm)

    def _pair(
        self, text: np.ndarray, borders: np.ndarray, other: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """text: int [tokens of a and b]; borders: where sentences begin in it -> a, up to a random one of them, and b,
        which is of `other` where there is any. A long sentence alone is cut in the middle [_split_a_and_b, 221-289]."""
        at = int(rng.choice(borders)) if len(borders) else len(text) // 2
        return text[:at], other[: len(text) - at] if len(other) else text[at:]

    def _ordered(self, tokens: np.ndarray, number: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """The number-th part -> its places, ranks and targets. The last one has the smaller half of the predictions."""
        last = number > self.config.warm
        wanted = self.predictions // 2 if last else self.predictions - self.predictions // 2
        begins = self.tokenizer.words.starts(tokens)
        chosen = spans(begins, wanted, self.config.predict_one_in, self.config.longest_span, rng)
        order = order_of(len(tokens), self.perm_size, rng)
        return places_and_ranks(order, chosen, np.isin(tokens, [self.sep, self.cls]))

    def _guessed(self, sample: Sample, best: np.ndarray) -> str:
        lines = [self._text(sample["tokens"][self.config.warm * self.reuse :])]
        for label, ids in zip(sample["labels"], best, strict=False):
            guesses = ", ".join(repr(self._text([i])) for i in ids)
            lines.append(f"  {self._text([label])!r}: {guesses}")
        return "\n".join(lines)

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)

    def _check(self) -> None:
        rest = self.length - self.reuse
        if self.reuse < SHORTEST_PART or self.text < SHORTEST_PART or self.config.predict_one_in < 2:
            raise InputError(
                f"data.seq_len={self.length} with objective.reuse={self.reuse} and objective.predict_one_in="
                f"{self.config.predict_one_in}: both parts need at least {SHORTEST_PART} tokens of text, and some that "
                "are not predicted"
            )
        if self.reuse % self.perm_size or rest % self.perm_size:
            raise InputError(
                f"objective.perm_size={self.perm_size} does not divide both parts of a sequence, of {self.reuse} and "
                f"{rest} tokens: what is permuted must not cross them"
            )


def joined(parts: Sequence[TextPart]) -> tuple[np.ndarray, np.ndarray]:
    """-> int64 tokens, and where sentences begin among them."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    offsets = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
    borders = [part.sentences + offset for part, offset in zip(parts, offsets, strict=True)]
    return np.concatenate([part.tokens for part in parts]).astype(np.int64), np.concatenate(borders)

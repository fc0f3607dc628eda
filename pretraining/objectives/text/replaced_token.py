"""Replaced token detection (Clark et al. 2020, "ELECTRA", section 3).

As google-research/electra, pretrain/run_pretraining.py and pretrain_helpers.py, but for one thing: positions are drawn
without replacement. The authors draw with replacement, so that some of theirs coincide: fewer are masked than counted,
and a token drawn twice counts twice in the generator's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PositiveFloat, Probability, configclass
from data_pipeline.loader import Sample
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.sentence_packing import SentenceSpans
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import GeneratorDiscriminatorWithHeads
from pretraining.objectives.padding import pad_to
from pretraining.objectives.samples import on_device_of
from pretraining.objectives.text.sentence_pairs import unlabeled_pair

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import GeneratorDiscriminator
    from pretraining.parallel.layers import Layers

SHORTEST_SEQUENCE = 8
SHORT_RATE = 0.05  # of the documents (the authors': of the examples) have a shorter target length
SHOWN_SAMPLES = 4  # that a demonstration writes out
MORE_PREDICTIONS = 0.005  # of a sequence than mask_rate at most (configure_pretraining.py, max_predictions_per_seq)


@configclass
class ReplacedTokenConfig:
    """A generator fills masked tokens, and a discriminator says of every token whether it was replaced. A sequence is
    two segments of neighboring sentences, or one, without a label.

    mask_rate: share of a sequence's tokens that are to be predicted, special ones counted as BERT counts them; only
        text is. The large model was trained with 0.25.
    mask_share: of these, the share that the generator sees masked; it sees the others as they are.
    masked_lm_weight: of the generator's loss in the total.
    detection_weight: of the discriminator's loss in the total.
    """

    name: Literal["replaced_token"]
    mask_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    mask_share: Probability = 0.85
    masked_lm_weight: PositiveFloat = 1.0
    detection_weight: PositiveFloat = 50.0


class ReplacedToken(Objective[TokenizedDocument, GeneratorDiscriminatorWithHeads]):
    """A sample, each int64: tokens, segments, positions, documents [length]; masked_positions, labels and keys
    [predictions]. tokens are the generator's input; the discriminator's is made in the loss, with what the generator
    draws by the keys.

    The metric `replaced` is the share of tokens that the generator drew wrong: a discriminator that knows nothing but
    this share has a loss of its entropy, not of ln 2.
    """

    unit = Unit.TOKENS
    text_term = "masked_lm"
    metrics = ("replaced",)

    def __init__(self, config: ReplacedTokenConfig, spec: SampleSpec) -> None:
        """Raises InputError where sequences are too short."""
        assert spec.tokenizer is not None
        if spec.seq_len < SHORTEST_SEQUENCE:
            raise InputError(
                f"objective=replaced_token needs sequences of at least {SHORTEST_SEQUENCE} tokens, not {spec.seq_len}"
            )
        self.config, self.length, self.tokenizer = config, spec.seq_len, spec.tokenizer
        tokenizer = spec.tokenizer
        self.pad, self.cls, self.sep, self.mask = tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask
        self.is_text = tokenizer.is_text
        self.max_predictions = max(1, int((config.mask_rate + MORE_PREDICTIONS) * spec.seq_len))
        self.terms = {"masked_lm": config.masked_lm_weight, "detection": config.detection_weight}

    def packing(self) -> SentenceSpans:
        return SentenceSpans(self.length, SHORT_RATE)

    def corrupt(self, segments: Sequence[TokenizedDocument], rng: np.random.Generator) -> Sample:
        first, second = unlabeled_pair(segments[0], self.length, rng)
        behind = [*second, self.sep] if len(second) else []
        tokens = np.array([self.cls, *first, self.sep, *behind], np.int64)
        sample = {
            "segments": np.repeat([0, 1], [len(tokens) - len(behind), len(behind)]),
            "positions": np.arange(len(tokens)),
            "documents": np.zeros_like(tokens),
        }
        return sample | self._masked(tokens, rng)

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays: lengths padded to seq_len, predictions to what mask_rate allows at that length.
        Padding is of document -1."""
        fill = {"tokens": self.pad, "segments": 0, "positions": 0, "documents": -1}
        batch = {name: pad_to(self.length, [s[name] for s in samples], value) for name, value in fill.items()}
        for name, value in (("masked_positions", 0), ("labels", IGNORED), ("keys", 0)):
            batch[name] = pad_to(self.max_predictions, [s[name] for s in samples], value)
        return batch

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        tokens = sum(len(s["tokens"]) for s in samples)
        return {"masked_lm": sum(len(s["labels"]) for s in samples), "detection": tokens, "replaced": tokens}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["labels"][s["labels"] != IGNORED]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: GeneratorDiscriminator, layers: Layers) -> dict[str, nn.Module]:
        return {
            "head": model.make_generator_head(layers, self.used_ids()),
            "detection_head": model.make_detection_head(),
        }

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("pad", "cls", "sep", "mask"))

    def loss(self, model: GeneratorDiscriminatorWithHeads, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No gradient of the discriminator's loss reaches the generator: what it drew is an argmax."""
        import torch.nn.functional as F

        masked, _, logits, replaced = _run(model, batch)
        present = batch["documents"] >= 0
        losses = F.binary_cross_entropy_with_logits(logits.float(), replaced.float(), reduction="none")
        return {
            "masked_lm": masked,
            "detection": (losses * present).sum(),
            "replaced": replaced.sum().float(),
        }

    def flops_per_unit(self, model: GeneratorDiscriminatorWithHeads) -> float:
        return model.flops_per_token(self.length)

    def describe(self, sample: Sample) -> str:
        """What the generator sees, and what it has to predict."""
        lines = [f"{len(sample['tokens'])} tokens, {len(sample['labels'])} to predict"]
        lines += [self._text(sample["tokens"]), "targets of the generator:"]
        for position, label in zip(sample["masked_positions"], sample["labels"], strict=True):
            seen = "masked" if sample["tokens"][position] == self.mask else "kept"
            lines.append(f"  {position:4d}  {self._text([label])!r}  <- {seen}")
        lines.append(
            "the discriminator sees the text with what the generator draws at these places, and has to find it"
        )
        return "\n".join(lines)

    def demonstrate(self, model: GeneratorDiscriminatorWithHeads, demonstration: Demonstration) -> str:
        """Validation text, what the generator drew in it, and how likely the discriminator finds a replacement."""
        import torch

        batch = on_device_of(model, self.collate(demonstration.samples))
        model.eval()
        with torch.no_grad():
            _, drawn, logits, replaced = _run(model, batch)
        chances, wrong, ids = (t.cpu().numpy() for t in (logits.float().sigmoid(), replaced, drawn))
        samples = demonstration.samples
        shown = [self._shown(*each) for each in zip(samples[:SHOWN_SAMPLES], chances, ids, strict=False)]
        present = (batch["documents"] >= 0).cpu().numpy()
        found = (chances > 0.5) & present
        score = (
            f"of {wrong.sum()} replaced tokens among {present.sum()} in {len(samples)} samples the discriminator finds "
            f"{(found & wrong).sum()}, and takes {(found & ~wrong).sum()} others for replaced"
        )
        return "\n\n".join([*shown, score])

    def _masked(self, tokens: np.ndarray, rng: np.random.Generator) -> Sample:
        """tokens: int [length] -> the generator's input, and the sample's arrays of predictions."""
        maskable = np.flatnonzero(self.is_text[tokens])
        wanted = max(1, min(self.max_predictions, round(self.config.mask_rate * len(tokens))))
        positions = np.sort(rng.choice(maskable, min(wanted, len(maskable)), replace=False))
        seen = tokens.copy()
        seen[positions[rng.random(len(positions)) < self.config.mask_share]] = self.mask
        keys = rng.integers(-(2**63), 2**63, len(positions))
        return {"tokens": seen, "masked_positions": positions, "labels": tokens[positions], "keys": keys}

    def _shown(self, sample: Sample, chances: np.ndarray, drawn: np.ndarray) -> str:
        tokens = sample["tokens"].copy()
        tokens[sample["masked_positions"]] = sample["labels"]
        lines = [self._text(tokens)]
        for position, label, token in zip(sample["masked_positions"], sample["labels"], drawn, strict=False):
            what = "right" if token == label else f"replaced by {self._text([token])!r}"
            lines.append(f"  {self._text([label])!r}: {what}; held for replaced: {chances[position]:.0%}")
        return "\n".join(lines)

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)


def _run(model: GeneratorDiscriminatorWithHeads, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> the generator's loss; what it drew, int [batch, predictions]; the discriminator's logits [batch, length]; and
    bool [batch, length], True where it saw another token than the text's."""
    where = (batch["segments"], batch["positions"], batch["documents"])
    hidden = model.generate(batch["tokens"], *where)
    masked, drawn = model.head(hidden, batch["masked_positions"], batch["labels"], batch["keys"])
    original = placed(batch["tokens"], batch, batch["labels"])
    seen = placed(original, batch, drawn)
    return masked, drawn, model.detection_head(model.discriminate(seen, *where)), seen != original


def placed(tokens: Tensor, batch: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """tokens: int [batch, length] -> a copy with `values`, int [batch, predictions], at the masked positions."""
    counted = batch["labels"] != IGNORED
    rows = counted.nonzero()[:, 0]
    out = tokens.clone()
    out[rows, batch["masked_positions"][counted]] = values[counted]
    return out

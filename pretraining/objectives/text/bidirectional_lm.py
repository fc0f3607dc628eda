"""A language model in each direction (Peters et al. 2018, "Deep contextualized word representations", section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.fields import configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation
from pretraining.labels import IGNORED
from pretraining.models.elmo.characters import PAD, character_table
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import BidirectionalDecoderWithHead
from pretraining.objectives.padding import pad_to
from pretraining.objectives.samples import on_device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import BidirectionalDecoder
    from pretraining.parallel.layers import Layers

SHOWN_PREDICTIONS = 8  # of each document in a description
SHOWN_SAMPLES = 4  # that a demonstration writes out
DIRECTIONS = ("forward_lm", "backward_lm")


@configclass
class BidirectionalLMConfig:
    """Predict each token from those before it, and from those after it. What the model reads of a token are its
    characters; tokens are the pieces of the tokenizer, a leading blank included, where the authors' are words.

    characters: the most of a token, with a mark for its beginning and one for its end.
    """

    name: Literal["bidirectional_lm"]
    characters: Annotated[int, Field(ge=8)] = 50


class BidirectionalLM(Objective[np.ndarray, BidirectionalDecoderWithHead]):
    """A sample, each int64 [length]: tokens, documents, forward_lm and backward_lm, the token that follows and the one
    before, IGNORED where a document ends or begins. A full softmax over the vocabulary, where the authors sample one.
    """

    terms = dict.fromkeys(DIRECTIONS, 0.5)
    unit = Unit.TOKENS
    text_term = "forward_lm"

    def __init__(self, config: BidirectionalLMConfig, spec: SampleSpec) -> None:
        assert spec.tokenizer is not None
        tokenizer = spec.tokenizer
        self.config, self.length, self.tokenizer = config, spec.seq_len, tokenizer
        self.bos, self.eos = tokenizer.bos, tokenizer.eos
        spelled = tokenizer.backend.token_bytes
        self.table = character_table(spelled, tokenizer.total_size, self.bos, self.eos, config.characters)

    def packing(self) -> Concatenation:
        # With a neighbor on either side, which is predicted and not read: each token is read once
        return Concatenation(self.length + 2, self.length, before=(self.bos,), after=(self.eos,))

    def corrupt(self, segments: Sequence[np.ndarray], rng: np.random.Generator) -> Sample:
        tokens = np.concatenate(segments).astype(np.int64)
        documents = np.repeat(np.arange(len(segments)), [len(segment) for segment in segments])
        same = documents[1:] == documents[:-1]
        return {
            "tokens": tokens[1:-1],
            "documents": documents[1:-1],
            "forward_lm": np.where(same[1:], tokens[2:], IGNORED),
            "backward_lm": np.where(same[:-1], tokens[:-2], IGNORED),
        }

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> documents, forward_lm, backward_lm int64 [batch, seq_len]; characters int64 [batch, seq_len, characters].
        Padding is of document -1."""
        fill = {"documents": -1, "forward_lm": IGNORED, "backward_lm": IGNORED}
        batch = {name: pad_to(self.length, [s[name] for s in samples], value) for name, value in fill.items()}
        tokens = pad_to(self.length, [s["tokens"] for s in samples], 0)
        present = (batch["documents"] >= 0)[..., None]
        return {**batch, "characters": np.where(present, self.table[tokens], PAD)}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {name: sum(int((s[name] != IGNORED).sum()) for s in samples) for name in DIRECTIONS}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["forward_lm"][s["forward_lm"] != IGNORED]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        return len(sample["tokens"])

    def heads(self, model: BidirectionalDecoder, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_direction_head(layers, self.used_ids())}

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("bos", "eos"))

    def loss(self, model: BidirectionalDecoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = model(batch["characters"], batch["documents"])
        return {name: model.head(h, batch[name]) for name, h in zip(DIRECTIONS, hidden, strict=True)}

    def flops_per_unit(self, model: BidirectionalDecoderWithHead) -> float:
        return model.flops_per_token(self.config.characters)

    def describe(self, sample: Sample) -> str:
        """Its documents, and for the first tokens of each the two that they predict."""
        parts = []
        for document in np.unique(sample["documents"]):
            here = sample["documents"] == document
            tokens, after, before = (sample[name][here] for name in ("tokens", *DIRECTIONS))
            steps = [
                f"{self._shown(b)} <- {self._shown(t)} -> {self._shown(a)}"
                for t, a, b in zip(tokens[:SHOWN_PREDICTIONS], after, before, strict=False)
            ]
            parts.append(
                f"--- document {document}, {len(tokens)} tokens\n{self._text(tokens)}\n--- predicts {', '.join(steps)}"
            )
        return "\n".join(parts)

    def demonstrate(self, model: BidirectionalDecoderWithHead, demonstration: Demonstration) -> str:
        """Validation text, what either direction takes for the likeliest token of its first places, and how many are
        right."""
        import torch

        samples = demonstration.samples
        batch = on_device_of(model, self.collate(samples))
        model.eval()
        with torch.no_grad():
            hidden = model(batch["characters"], batch["documents"])
            best = [model.head.logits(h).argmax(-1).cpu().numpy() for h in hidden]
        lines = []
        for number, sample in enumerate(samples[:SHOWN_SAMPLES]):
            lines.append(self._text(sample["tokens"]))
            for name, guesses in zip(DIRECTIONS, best, strict=True):
                pairs = zip(sample[name][:SHOWN_PREDICTIONS], guesses[number], strict=False)
                lines.append(f"  {name}: {', '.join(f'{self._shown(t)}: {self._shown(g)}' for t, g in pairs)}")
        for name, guesses in zip(DIRECTIONS, best, strict=True):
            labels = batch[name].cpu().numpy()
            right = (labels == guesses)[labels != IGNORED]
            lines.append(f"{name}: of {len(right)} tokens the likeliest is right for {right.mean():.1%}")
        return "\n".join(lines)

    def _shown(self, token: int) -> str:
        return "nothing" if token == IGNORED else repr(self._text([token]))

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)

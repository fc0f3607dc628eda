"""Language modeling by segments with a memory of those before (Dai et al. 2019, "Transformer-XL", section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, Positive, configclass
from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Concatenation
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, Objective, SampleSpec, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import RecurrentDecoderWithHead
from pretraining.objectives.padding import pad_to
from pretraining.objectives.text.causal_lm import SHOWN_PREDICTIONS, CausalLM, CausalLMConfig, continued

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers


@configclass
class RecurrentLMConfig:
    """Predict each token from those before it, by segments; what the model remembers runs from segment to segment
    within a sample, and not from step to step. The memory of a sample's first segments is that of the sample before:
    they are read again.

    segment: tokens that are read at a time; data.seq_len is a whole number of them.
    warm: a sample's first segments, which only make memory. With as many as the model has blocks, and a memory of a
        segment, a prediction sees exactly what an unlimited recurrence would show it; 1 is one segment of memory.
    cross_document_attention: a token also sees earlier documents, as the authors' models do.
    """

    name: Literal["recurrent_lm"]
    segment: Positive = 64
    warm: NonNegative = 1
    cross_document_attention: bool = False


class RecurrentLM(Objective[np.ndarray, RecurrentDecoderWithHead]):
    """A sample: tokens, labels, documents, each int64 [length]; labels are IGNORED at a document's end and in the warm
    segments. With cross_document_attention it has no documents.

    Samples overlap by their warm segments, so that each token of a window but those of its first warm segments, and
    documents' first ones, is predicted once. An evaluation reads what training reads.
    """

    terms = {"recurrent_lm": 1.0}
    unit = Unit.TOKENS
    text_term = "recurrent_lm"

    def __init__(self, config: RecurrentLMConfig, spec: SampleSpec) -> None:
        """Raises InputError where a sequence is not a whole number of segments, or has none with a loss."""
        assert spec.tokenizer is not None
        self.config, self.length, self.tokenizer = config, spec.seq_len, spec.tokenizer
        self.first = config.warm * config.segment  # the first token with a label
        if spec.seq_len % config.segment or spec.seq_len <= self.first:
            raise InputError(
                f"data.seq_len={spec.seq_len} is not {config.warm} warm segments of objective.segment={config.segment} "
                f"tokens and a whole number of others, such as {self.first + 4 * config.segment}"
            )
        inner = CausalLMConfig("causal_lm", cross_document_attention=config.cross_document_attention)
        self.causal = CausalLM(inner, spec)

    def packing(self) -> Concatenation:
        before, after = (self.tokenizer.bos,), (self.tokenizer.eos,)
        return Concatenation(self.length + 1, self.length - self.first, before=before, after=after)

    def corrupt(self, segments: Sequence[np.ndarray], rng: np.random.Generator) -> Sample:
        sample = self.causal.corrupt(segments, rng)
        del sample["positions"]  # distances are what the model knows
        sample["labels"][: self.first] = IGNORED
        return sample

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays, int64 [batch, seq_len]. Padding is of document -1."""
        fill = {"tokens": self.tokenizer.pad, "labels": IGNORED, "documents": -1}
        return {name: pad_to(self.length, [s[name] for s in samples], fill[name]) for name in samples[0]}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {"recurrent_lm": sum(int((s["labels"] != IGNORED).sum()) for s in samples)}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return self.causal.target_bytes(samples)

    def size(self, sample: Sample) -> int:
        """Without the warm segments, which are of the sample before."""
        return len(sample["tokens"]) - self.first

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_token_head(layers, self.used_ids())}

    def used_ids(self) -> npt.NDArray[np.int64]:
        return self.tokenizer.used_ids(("bos", "eos"))

    def loss(self, model: RecurrentDecoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = model(batch["tokens"], batch.get("documents"), self.config.segment, self.config.warm)
        return {"recurrent_lm": model.head(hidden, batch["labels"][:, self.first :])}

    def flops_per_unit(self, model: RecurrentDecoderWithHead) -> float:
        trained = self.length - self.first
        return model.flops_of_segments(self.config.segment, self.config.warm, trained // self.config.segment) / trained

    def describe(self, sample: Sample) -> str:
        """Segment by segment: what is read, and for its first tokens the token that they predict."""
        parts = []
        for number, start in enumerate(range(0, len(sample["tokens"]), self.config.segment)):
            tokens, labels = (sample[name][start : start + self.config.segment] for name in ("tokens", "labels"))
            steps = [
                f"{self._text([t])!r} -> {self._text([n])!r}"
                for t, n in zip(tokens[:SHOWN_PREDICTIONS], labels, strict=False)
                if n != IGNORED
            ]
            what = "makes memory only" if number < self.config.warm else f"predicts {', '.join(steps)}"
            parts.append(f"--- segment {number}, {len(tokens)} tokens\n{self._text(tokens)}\n--- {what}")
        return "\n".join(parts)

    def demonstrate(self, model: RecurrentDecoderWithHead, demonstration: Demonstration) -> str:
        """Text that the model writes by itself, longer than a segment."""
        import torch

        device = next(model.parameters()).device
        model.eval()

        def next_token(tokens: list[int]) -> Tensor:
            return model.head.logits(model(torch.tensor([tokens], device=device), None, self.config.segment)[0, -1])

        length = demonstration.bounded(self.length)
        start, stop = [self.tokenizer.bos], self.tokenizer.eos
        return self.tokenizer.decode(continued(next_token, start, length, stop, demonstration.seed))

    def _text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)

"""What the objectives of encoder-decoders share: they differ in what is read and written, not in what becomes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.loader import Sample
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.objectives.base import Objective, SegmentT, Unit
from pretraining.objectives.inspect import decode_with_specials
from pretraining.objectives.models import EncoderDecoderWithHead
from pretraining.objectives.padding import pad_to
from pretraining.objectives.samples import on_device_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretraining.models.base import TokenModel
    from pretraining.parallel.layers import Layers


class EncoderDecoderObjective(Objective[SegmentT, EncoderDecoderWithHead]):
    """A sample, each int64: inputs and input_documents [read], decoder_inputs, labels and target_documents [written].

    decoder_inputs are the labels shifted right within each document. A subclass has one loss term, its text_term.
    """

    unit = Unit.TOKENS
    text_term: str
    z_loss = 0.0  # see VocabularyLoss
    label_smoothing = 0.0

    def __init__(self, tokenizer: Tokenizer, inputs_length: int, targets_length: int) -> None:
        """Lengths are those of a row in a batch, in tokens."""
        self.tokenizer, self.inputs_length, self.targets_length = tokenizer, inputs_length, targets_length
        self.pad, self.eos = tokenizer.pad, tokenizer.eos

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """-> the sample's arrays, [batch, inputs_length] what is read and [batch, targets_length] what is written.
        Padding is of document -1."""
        fill = {
            "inputs": self.pad,
            "input_documents": -1,
            "decoder_inputs": self.pad,
            "labels": IGNORED,
            "target_documents": -1,
        }
        lengths = {name: self.inputs_length if name.startswith("input") else self.targets_length for name in fill}
        return {name: pad_to(lengths[name], [s[name] for s in samples], fill[name]) for name in fill}

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        return {self.text_term: sum(len(s["labels"]) for s in samples)}

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        return sum(int(self.tokenizer.text_bytes[s["labels"]].sum()) for s in samples)

    def size(self, sample: Sample) -> int:
        return len(sample["inputs"]) + len(sample["labels"])

    def target_length(self) -> int:
        return self.targets_length

    def heads(self, model: TokenModel, layers: Layers) -> dict[str, nn.Module]:
        return {"head": model.make_token_head(layers, self.used_ids(), self.z_loss, self.label_smoothing)}

    def loss(self, model: EncoderDecoderWithHead, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.text_term: model.head(_hidden(model, batch), batch["labels"])}

    def flops_per_unit(self, model: EncoderDecoderWithHead) -> float:
        return model.flops_per_token(self.inputs_length)

    def accuracy_sentence(
        self, model: EncoderDecoderWithHead, samples: Sequence[Sample], what: str, unscored: Collection[int] = ()
    ) -> str:
        """How often the likeliest token after the true ones is the true one, as a sentence of a demonstration. what:
        whose tokens these are. unscored: ids that are left out."""
        import torch

        batch = on_device_of(model, self.collate(samples))
        model.eval()
        with torch.no_grad():
            best = model.head.logits(_hidden(model, batch)).argmax(-1).cpu().numpy()
        labels = batch["labels"].cpu().numpy()
        right = (best == labels)[~np.isin(labels, [IGNORED, *unscored])]
        return (
            f"of {len(right)} tokens {what}, the likeliest one after the true ones before it is right "
            f"for {right.mean() if len(right) else 0:.1%}"
        )

    def text(self, ids: Iterable[int]) -> str:
        return decode_with_specials(self.tokenizer, ids)


def joined(inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray], start: int) -> Sample:
    """The sample of some documents, of which the decoder begins each with `start`. inputs, labels: int64 [tokens] of
    each."""
    return {
        "inputs": np.concatenate(inputs),
        "input_documents": _numbered(inputs),
        "decoder_inputs": np.concatenate([np.append(start, target[:-1]) for target in labels]),
        "labels": np.concatenate(labels),
        "target_documents": _numbered(labels),
    }


def documents_of(sample: Sample) -> Iterator[tuple[list[int], list[int]]]:
    """-> (inputs, labels) of each document of a sample, end tokens included."""
    for number in range(int(sample["input_documents"].max()) + 1):
        read = sample["inputs"][sample["input_documents"] == number]
        yield read.tolist(), sample["labels"][sample["target_documents"] == number].tolist()


def _hidden(model: EncoderDecoderWithHead, batch: Mapping[str, Tensor]) -> Tensor:
    """-> [batch, written, features]."""
    return model(batch["inputs"], batch["decoder_inputs"], batch["input_documents"], batch["target_documents"])


def _numbered(parts: Sequence[np.ndarray]) -> np.ndarray:
    """-> int64 [sum of lengths], which part each element belongs to."""
    return np.repeat(np.arange(len(parts)), [len(p) for p in parts])

"""The contract of an objective: what it needs, how samples are made of documents, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.loader import Sample
from data_pipeline.stream.packing import Packing
from data_pipeline.tokenizers.export import Frame
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.patches import PatchGrid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from pretraining.parallel.layers import Layers

SegmentT = TypeVar("SegmentT", contravariant=True)  # what the packing cuts of a document
ModelT = TypeVar("ModelT", contravariant=True)  # the Protocol of its role in objectives/models.py


class Unit(StrEnum):
    """What an objective counts its progress in."""

    TOKENS = "tokens"
    IMAGES = "images"


@dataclass(frozen=True)
class SampleSpec:
    """What samples must fit: the prepared data's vocabulary or classes, and what the model reads.

    seq_len: tokens of a text sequence (0 for images).
    grid: of an image (None for text).
    tokenizer: None for images.
    packs_documents: whether the model keeps documents of one sequence apart; else a sequence has one.
    classes: names of the labels of images, by number.
    """

    seq_len: int = 0
    grid: PatchGrid | None = None
    tokenizer: Tokenizer | None = None
    packs_documents: bool = True
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demonstration:
    """What an objective is given to show what a model has learned.

    samples: unaugmented, of the validation split.
    run_dir: where pictures are written.
    seed: of whatever is drawn, e.g. generated text.
    longest: tokens that the model writes by itself at most; None leaves it to the objective.
    """

    samples: Sequence[Sample]
    run_dir: Path
    seed: int
    longest: int | None = None

    def bounded(self, length: int) -> int:
        """`length` tokens, or as many as are to be written at most."""
        return length if self.longest is None else min(length, self.longest)


class Objective(Protocol[SegmentT, ModelT]):
    """One way to train. Built by `Objective(config, spec: SampleSpec)` from the table in objectives/registry.py.

    Samples are made in loader workers (numpy, no torch); `loss` runs on the device and draws no random numbers.
    A class inherits from this Protocol, so that mypy checks it, and overrides a default where it differs.
    """

    terms: Mapping[str, float]  # the loss terms that are optimized, each with its weight
    metrics: Sequence[str] = ()  # further sums of `loss` that are reported, not optimized
    unit: Unit
    text_term: str | None = None  # the one that is a sum over the tokens of text in the targets, in nats
    frame: Frame | None = None  # of its inputs, where the model's family was published with another: an export has it
    # Role of the special token that a decoder begins with, which an export states; "language" where each text begins
    # with that of its own
    decoder_start: str | None = None
    scored_samples: int = 0  # of the validation data, that `scores` is given at each evaluation

    def packing(self) -> Packing:
        """How documents are cut into sequences."""
        ...

    def packing_of(self, corpus: str, kind: str) -> Packing:
        """As `packing`, for the documents of a mixture's corpus of this name, where a sample has to know it; '' is data
        of one corpus. kind: of its data. Raises InputError where there can be no samples of it."""
        return self.packing()

    def corrupt(self, segments: Sequence[SegmentT], rng: np.random.Generator) -> Sample:
        """One sequence, as the packing cut it, as a sample. Pure: rng is keyed by seed and global sample number."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """Samples as one micro-batch, padded to shapes that depend on the config alone."""
        ...

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """How many targets each term and metric is a sum over."""
        ...

    def target_bytes(self, samples: Sequence[Sample]) -> int:
        """Bytes of the text that the samples' targets spell, special ids left out; 0 for images."""
        return 0

    def size(self, sample: Sample) -> int:
        """How many units the sample has; padding is left out."""
        ...

    def target_length(self) -> int:
        """Tokens that a decoder writes for a sample, padding included; 0 where none reads what another wrote."""
        return 0

    def heads(self, model: ModelT, layers: Layers) -> dict[str, nn.Module]:
        """What this objective puts on top of the model, by the attribute's name; weights still empty."""
        ...

    def used_ids(self) -> npt.NDArray[np.int64] | None:
        """Ascending: the ids that its samples may hold, and those that the tokenizer has itself. The others take no
        part in its softmax and do not leave in an export. None for images."""
        return None

    def loss(self, model: ModelT, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over the batch of every term (with a gradient) and metric, fp32 scalars."""
        ...

    def flops_per_unit(self, model: ModelT) -> float:
        """Forward and backward FLOPs of one unit."""
        ...

    def for_evaluation(self) -> Self:
        """The same objective without augmentation."""
        return self

    def describe(self, sample: Sample) -> str:
        """A sample as text: what the model sees and what it has to predict."""
        ...

    def picture(self, sample: Sample) -> Image.Image | None:
        """A sample as the model sees it; None where a sample is text."""
        return None

    def scores(self, model: ModelT, samples: Sequence[Sample]) -> dict[str, float]:
        """Figures of what the model writes by itself, by name: {"bleu": 27.3}. samples: unaugmented. Computed by one
        rank, where it holds the whole model."""
        return {}

    def demonstrate(self, model: ModelT, demonstration: Demonstration) -> str:
        """What the model does, on samples of the validation split, as text. May write pictures and names them."""
        ...

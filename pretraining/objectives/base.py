"""The contract of an objective: what it needs, how samples are made of documents, and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_pipeline.stream.packing import Packing
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.patches import PatchGrid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from pretraining.parallel.layers import Layers

Sample = dict[str, np.ndarray]


class Unit(StrEnum):
    """What an objective counts its progress in."""

    TOKENS = "tokens"
    IMAGES = "images"


@dataclass(frozen=True)
class SampleSpec:
    """What samples must fit: the prepared data's vocabulary or classes, and what the model reads.

    seq_len: tokens of a text sequence (0 for images). grid: of an image (None for text). tokenizer: None for images.
    """

    seq_len: int = 0
    grid: PatchGrid | None = None
    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] = ()


class Objective(Protocol):
    """One way to train. Made by `Objective(config, spec: SampleSpec)` from the table in objectives/registry.py.

    Samples are made in loader workers (numpy, no torch); `loss` runs on the device and draws no random numbers.
    """

    terms: Mapping[str, float]  # the loss terms that are optimized, each with its weight
    metrics: Sequence[str]  # further sums of `loss` that are reported, not optimized
    unit: Unit

    def packing(self) -> Packing:
        """How documents are cut into sequences."""
        ...

    def corrupt(self, segments: Sequence[Any], rng: np.random.Generator) -> Sample:
        """One sequence, as the packing cut it, as a sample. Pure: rng is keyed by seed and global sample number."""
        ...

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """Samples as one micro-batch, padded to shapes that depend on the config alone."""
        ...

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """How many targets each term and metric is a sum over."""
        ...

    def size(self, sample: Sample) -> int:
        """How many units the sample has; padding is left out."""
        ...

    def heads(self, model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
        """What this objective puts on top of the model, by the attribute's name; weights still empty."""
        ...

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over the batch of every term and metric, fp32 scalars."""
        ...

    def flops_per_unit(self, model: Any) -> float:
        """Forward and backward FLOPs of one unit."""
        ...

    def target_length(self) -> int:
        """Tokens that a decoder writes for a sample, padding included; 0 where none reads what another wrote."""
        ...

    def describe(self, sample: Sample, tokenizer: Any) -> str:
        """A sample as text: what the model sees and what it has to predict."""
        ...

    def picture(self, sample: Sample) -> Image.Image | None:
        """A sample as the model sees it; None where a sample is text."""
        ...

    def for_evaluation(self) -> Objective:
        """The same objective without augmentation."""
        ...

"""Samples for people to look at, and on their way to a model outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.loader import Sample, SampleMaker
from data_pipeline.stream.sequence_source import SequenceSource
from pretraining.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor


def first_samples(source: SequenceSource[Any], maker: SampleMaker, count: int) -> list[Sample]:
    """The first `count` samples of a source; fewer where its first epoch has fewer."""
    samples: list[Sample] = []
    state = source.start()
    while len(samples) < count and source.passes(state) == 0:
        rng = generator(source.seed, Purpose.CORRUPTION, source.number(state))
        samples.append(maker.corrupt(source.sequence(state), rng))
        state = source.advance(state, 1)
    return samples


def on_device_of(model: Model, batch: Sample) -> dict[str, Tensor]:
    """A collated batch as tensors where the model's parameters are."""
    import torch

    device = next(model.parameters()).device
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}

"""Samples for people to look at, and on their way to a model outside of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.loader import Sample, SampleMaker
from data_pipeline.stream.stream import Position, Stream
from pretraining.models.base import Model

if TYPE_CHECKING:
    from torch import Tensor


def first_samples(stream: Stream, maker: SampleMaker, count: int) -> list[Sample]:
    """The first `count` samples of a stream; fewer where its first epoch has fewer."""
    samples: list[Sample] = []
    position = Position()
    while len(samples) < count and position.epoch == 0:
        rng = generator(stream.seed, Purpose.CORRUPTION, position.number)
        samples.append(maker.corrupt(stream.sequence(position), rng))
        position = stream.advance(position, 1)
    return samples


def on_device_of(model: Model, batch: Sample) -> dict[str, Tensor]:
    """A collated batch as tensors where the model's parameters are."""
    import torch

    device = next(model.parameters()).device
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}

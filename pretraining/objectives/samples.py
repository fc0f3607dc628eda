"""What an objective is given to show what its model has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.randomness import Purpose, generator
from data_pipeline.loader import Sample, SampleMaker
from data_pipeline.stream.stream import Position, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Demonstration:
    """tokenizer: None where the data are images. samples: the first of the validation split, as an evaluation sees
    them. run_dir: where pictures go."""

    tokenizer: Tokenizer | None
    samples: list[Sample]
    run_dir: Path
    seed: int


def first_samples(stream: Stream, maker: SampleMaker, count: int) -> list[Sample]:
    """The first `count` samples of a stream; fewer where its first epoch has fewer."""
    samples: list[Sample] = []
    position = Position()
    while len(samples) < count and position.epoch == 0:
        rng = generator(stream.seed, Purpose.CORRUPTION, position.number)
        samples.append(maker.corrupt(stream.sequence(position), rng))
        position = stream.advance(position, 1)
    return samples

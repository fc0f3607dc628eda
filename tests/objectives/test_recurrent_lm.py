"""Samples of language modeling by segments: what overlaps, what is predicted, what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.stream.stream import Position, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.recurrent_lm import RecurrentLM, RecurrentLMConfig


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.load(corpus / "tokenizer")


def objective(tokenizer: Tokenizer, length: int = 40, **options: bool) -> RecurrentLM:
    config = RecurrentLMConfig("recurrent_lm", segment=8, warm=2, **options)
    return RecurrentLM(config, SampleSpec(seq_len=length, tokenizer=tokenizer))


def test_each_token_of_a_window_is_predicted_once(tokenizer: Tokenizer) -> None:
    """But for those of the first warm segments, and the first ones of documents; and the memory of a sample is the tail
    of the one before."""
    task = objective(tokenizer)
    lengths = np.array([31, 5, 100, 60])
    plan, documents, at = task.packing().plan(lengths), [], []
    for number in range(plan.num_sequences):
        pieces = [
            np.arange(s.start, s.stop) + 1000 * (s.document + 1) for s in plan.segments(number)
        ]  # a place of its own for each token
        sample = task.corrupt(pieces, np.random.default_rng(0))
        assert (sample["labels"][:16] == IGNORED).all() and len(sample["tokens"]) <= 40
        at.append(sample["labels"][sample["labels"] != IGNORED])
        documents.append(sample["tokens"])
    predicted = np.concatenate(at)
    every = np.concatenate([np.arange(n + 2) + 1000 * (d + 1) for d, n in enumerate(lengths)])
    expected = [t for t in every[17:] if t % 1000]
    assert sorted(predicted.tolist()) == expected
    for earlier, later in pairwise(documents):
        assert earlier[-16:].tolist() == later[:16].tolist()


def test_samples_of_real_text(corpus: Path, tokenizer: Tokenizer) -> None:
    task, across = objective(tokenizer), objective(tokenizer, cross_document_attention=True)
    stream = Stream(TextReader(load_manifest(corpus), "train"), task.packing(), 1)
    rng = np.random.default_rng(1)
    segments = stream.sequence(Position())
    sample, other = task.corrupt(segments, rng), across.corrupt(segments, rng)
    assert set(sample) == {"tokens", "labels", "documents"} and set(other) == {"tokens", "labels"}
    assert task.size(sample) == len(sample["tokens"]) - 16
    assert "makes memory only" in task.describe(sample) and "predicts" in task.describe(sample)
    assert (sample["labels"][16:] == other["labels"][16:]).mean() > 0.9


@pytest.mark.parametrize("length", [16, 36])
def test_lengths_that_are_no_whole_segments_are_refused(tokenizer: Tokenizer, length: int) -> None:
    with pytest.raises(InputError, match=f"data.seq_len={length} is not 2 warm segments of objective.segment=8"):
        objective(tokenizer, length)

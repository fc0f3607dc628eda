"""Samples of the bidirectional language model: each token read once, and predicted once from either side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.models.elmo.characters import BEGIN, BOS, END, PAD
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.bidirectional_lm import BidirectionalLM, BidirectionalLMConfig


@pytest.fixture(scope="module")
def task(corpus: Path) -> BidirectionalLM:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    return BidirectionalLM(BidirectionalLMConfig("bidirectional_lm", characters=10), SampleSpec(8, None, tokenizer))


def test_each_token_is_read_once_with_both_of_its_neighbors(task: BidirectionalLM) -> None:
    lengths = np.array([13, 1, 20])
    plan = task.packing().plan(lengths)
    framed = [np.arange(n + 2) + 100 * (d + 1) for d, n in enumerate(lengths)]  # a number of its own for each token
    every = np.concatenate(framed)
    read, after, before = [], [], []
    for number in range(plan.num_sequences):
        pieces = [framed[s.document][s.start : s.stop] for s in plan.segments(number)]
        sample = task.corrupt(pieces, np.random.default_rng(0))
        read.append(sample["tokens"])
        after.append(sample["forward_lm"])
        before.append(sample["backward_lm"])
    assert np.concatenate(read).tolist() == every[1:-1].tolist()
    document = every // 100
    assert np.concatenate(after).tolist() == np.where(document[1:-1] == document[2:], every[2:], IGNORED).tolist()
    assert np.concatenate(before).tolist() == np.where(document[1:-1] == document[:-2], every[:-2], IGNORED).tolist()


def test_a_batch_holds_the_characters_of_its_tokens(task: BidirectionalLM) -> None:
    word = int(np.argmax([len(b) if len(b) < 7 else 0 for b in task.tokenizer.backend.token_bytes]))
    spelled = list(task.tokenizer.backend.token_bytes[word])
    sample = task.corrupt([np.array([task.bos, word, task.bos, word, task.eos])], np.random.default_rng(0))
    batch = task.collate([sample])
    assert batch["characters"].shape == (1, 8, 10) and batch["documents"].tolist() == [[0, 0, 0, *[-1] * 5]]
    first, second, *_, last = batch["characters"][0].tolist()
    assert first == [BEGIN, *spelled, END, *[PAD] * (8 - len(spelled))]
    assert second == [BEGIN, BOS, END, *[PAD] * 7] and last == [PAD] * 10
    assert task.counts([sample]) == {"forward_lm": 3, "backward_lm": 3} and task.size(sample) == 3
    assert task.terms == {"forward_lm": 0.5, "backward_lm": 0.5}
    assert f"{task.tokenizer.decode([word])!r}" in task.describe(sample)

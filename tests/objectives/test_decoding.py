"""Beam search against every sequence there is, and against steps one by one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pretraining.models.transformer_2017.config import TransformerConfig2017
from pretraining.objectives.sequence.decoding import beam_search, greedy, length_penalty
from tests.building import build

VOCABULARY, START, STOP = 5, 0, 1


@pytest.fixture(scope="module")
def model() -> Any:
    made = build(TransformerConfig2017("transformer", 1, 16, 2, 32), VOCABULARY)
    made.initialize(4)
    with torch.no_grad():
        made.token_embedding.weight[:VOCABULARY] *= 3.0  # likelihoods far from even
    return made.eval()


def scores(model: Any, inputs: list[int], longest: int, alpha: float) -> dict[tuple[int, ...], float]:
    """Of every sequence of at most `longest` tokens that ends."""
    others = [t for t in range(VOCABULARY) if t != STOP]
    found = {}
    for length in range(longest):
        for tokens in itertools.product(others, repeat=length):
            with torch.no_grad():
                logits = model.head.logits(model(torch.tensor([inputs]), torch.tensor([[START, *tokens]])))[0]
            chosen = logits.log_softmax(-1)[range(length + 1), [*tokens, STOP]]
            found[tokens] = float(chosen.sum()) / length_penalty(length + 1, alpha)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(model: Any, alpha: float) -> None:
    inputs = [[2, 3, 4, 1], [4, 1], [3, 3, 2, 2, 1]]  # padded to one length
    found = beam_search(model, inputs, START, STOP, [4, 3, 4], beams=350, alpha=alpha)
    for source, longest, tokens in zip(inputs, (4, 3, 4), found, strict=True):
        every = scores(model, source, longest, alpha)
        assert tuple(tokens) == max(every, key=lambda t: every[t])


def test_one_beam_without_penalty_is_greedy(model: Any) -> None:
    for inputs in ([2, 3, 4, 1], [4, 1], [3, 1], [2, 2, 2, 1]):
        expected = greedy(model, inputs, START, STOP, 8, set())
        assert beam_search(model, [inputs], START, STOP, [8], beams=1, alpha=0.0) == [expected]


def test_greedy_takes_the_likeliest_token_step_by_step(model: Any) -> None:
    inputs, written = [2, 3, 4, 1], [START]
    for _ in range(6):
        following = model.head.logits(model(torch.tensor([inputs]), torch.tensor([written])))[0, -1]
        if int(following.argmax()) == STOP:
            break
        written.append(int(following.argmax()))
    assert greedy(model, inputs, START, STOP, 6, set()) == written[1:]


def test_lengths_are_kept_where_nothing_ends(model: Any) -> None:
    inputs, lengths = [[2, 3, 4, 1], [4, 4, 1], [3, 1]], [4, 1, 2]
    found = beam_search(model, inputs, START, STOP, lengths, beams=2)
    assert all(len(tokens) <= longest for tokens, longest in zip(found, lengths, strict=True))
    together = beam_search(model, inputs, START, STOP, [6, 6, 6])
    assert together == [beam_search(model, [source], START, STOP, [6])[0] for source in inputs]


def test_the_penalty_is_that_of_the_paper() -> None:
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6) and length_penalty(30, 0.0) == 1.0

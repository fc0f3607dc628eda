"""XLNet's orders, spans and sequences, against the definitions of zihangdai/xlnet, data_utils.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader, TokenizedDocument
from data_pipeline.stream.stream import Position, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.models.xlnet.model import in_order
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.sequence.permutation import order_of, places_and_ranks, spans
from pretraining.objectives.sequence.permutation_lm import PermutationLM, PermutationLMConfig
from pretraining.objectives.sequence.reuse_packing import Excerpt, ReusePairs


def local_perm(index: list[int], chosen: list[bool], functional: list[bool]) -> tuple[list[list[int]], list[int]]:
    """By its docstring and comments, pair by pair: (1 where i cannot attend to j, 1 for a target)."""
    n = len(index)
    hidden = [c or f for c, f in zip(chosen, functional, strict=True)]
    targets = [c and not f for c, f in zip(chosen, functional, strict=True)]
    place = [index[i] if hidden[i] else -1 for i in range(n)]
    own = [place[i] if targets[i] else place[i] + 1 for i in range(n)]
    return [[int(hidden[j] and own[i] <= place[j]) for j in range(n)] for i in range(n)], [int(t) for t in targets]


@pytest.mark.parametrize(("length", "size"), [(12, 12), (12, 4), (16, 8)])
def test_masks_and_targets_are_those_of_local_perm(length: int, size: int) -> None:
    for case in range(60):
        rng = np.random.default_rng(case)
        order = order_of(length, size, rng)
        chosen, functional = rng.random(length) < 0.3, rng.random(length) < 0.1
        places, ranks, targets = places_and_ranks(order, chosen, functional)
        blocked, target_mask = local_perm(order.tolist(), chosen.tolist(), functional.tolist())
        found = ~in_order(torch.from_numpy(places)[None], torch.from_numpy(ranks)[None])[0]
        assert found.int().tolist() == blocked
        assert targets.tolist() == np.flatnonzero(target_mask).tolist()


def test_an_order_is_one_permutation_for_every_run() -> None:
    order = order_of(12, 4, np.random.default_rng(3)).reshape(3, 4)
    assert sorted(order[0].tolist()) == [0, 1, 2, 3]
    assert (order - order[0] == np.array([0, 4, 8])[:, None]).all()
    seen = {tuple(order_of(3, 3, np.random.default_rng(n)).tolist()) for n in range(200)}
    assert len(seen) == 6


def test_halves_see_each_other_in_one_direction() -> None:
    places, ranks = torch.tensor([[-1, 0, -1, 1]]), torch.tensor([[0, 0, 0, 1]])
    allowed = in_order(places, ranks, 2)[0].int().tolist()
    assert allowed == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]


def test_spans_follow_the_published_law() -> None:
    """Runs of 1 to 5, measured on the authors' code with 42 of 256 tokens and words of 1.4 tokens: .561 .178 .112 .081
    .064; always as many as wanted; spans begin with a word but for what was filled in."""
    rng, runs, at_words = np.random.default_rng(1), np.zeros(300), []
    for _ in range(1500):
        begins = rng.random(256) < 0.7
        chosen = spans(begins, 42, 6, 5, rng)
        assert chosen.sum() == 42
        edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
        starts, stops = edges[::2], edges[1::2]
        runs += np.bincount(stops - starts, minlength=300)
        at_words.append(begins[starts].mean())
    assert (runs[1:6] / runs.sum()) == pytest.approx([0.561, 0.178, 0.112, 0.081, 0.064], abs=0.012)
    assert np.mean(at_words) > 0.9  # 0.7 of the places begin a word


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.load(corpus / "tokenizer")


def objective(tokenizer: Tokenizer, length: int = 64, **options: int) -> PermutationLM:
    return PermutationLM(
        PermutationLMConfig("permutation_lm", **options), SampleSpec(seq_len=length, tokenizer=tokenizer)
    )


def test_a_sequence_is_a_first_part_and_two_segments(corpus: Path, tokenizer: Tokenizer) -> None:
    task = objective(tokenizer, warm=1)
    stream = Stream(TextReader(load_manifest(corpus), "train"), task.packing(), 1)
    sep, cls = tokenizer.sep, tokenizer.cls
    elsewhere = 0
    for number in range(200):
        parts = stream.sequence(stream.advance(Position(), number))
        sample = task.corrupt(parts, np.random.default_rng(number))
        tokens, segments = sample["tokens"][32:], sample["segments"][32:]
        assert len(sample["tokens"]) == 96 and (sample["segments"][:32] == 0).all()
        seps = np.flatnonzero(tokens == sep)
        assert len(seps) == 2 and seps[1] == 62 and tokens[63] == cls and 32 < seps[0] < 62
        assert segments.tolist() == [0] * (seps[0] + 1) + [1] * (62 - seps[0]) + [2]
        own = np.concatenate([part.tokens for part in parts if not part.elsewhere])
        assert (own[:64] == sample["tokens"][:64]).all()
        a, b = tokens[32 : seps[0]], tokens[seps[0] + 1 : 62]
        assert (a == own[64 : 64 + len(a)]).all()
        random = any(part.elsewhere for part in parts)
        assert random or (b == own[64 + len(a) : 64 + 29]).all()
        assert not np.isin(sample["labels"], [sep, cls]).any() and (tokens[sample["targets"]] == sample["labels"]).all()
        elsewhere += random
        assert 8 <= len(sample["labels"]) <= 10 and (sample["targets"] < 32).sum() == 5
    assert 70 <= elsewhere <= 130


def test_each_sequence_goes_on_behind_the_first_part_of_the_one_before() -> None:
    packing = ReusePairs(length=40, stride=10, excerpt=12, end=1)
    lengths = np.array([33, 20, 50])
    documents = [TokenizedDocument(np.arange(n) + 100 * (d + 1), np.arange(0, n, 7)) for d, n in enumerate(lengths)]
    starts = np.concatenate([d.sentences + o for d, o in zip(documents, [0, 33, 53], strict=True)])
    plan = packing.plan(lengths, lambda: starts)
    framed = np.concatenate([np.append(d.tokens, 1) for d in documents])
    excerpts = 0
    for number in range(plan.num_sequences):
        parts = [(s, packing.cut(documents[s.document], s)) for s in plan.segments(number)]
        own = np.concatenate([part.tokens for s, part in parts if not part.elsewhere])
        assert (own == framed[10 * number : 10 * number + 40]).all()
        other = [part for s, part in parts if isinstance(s, Excerpt)]
        if other:
            excerpts += 1
            assert sum(len(part.tokens) for part in other) == 12 and other[0].sentences[0] == 0
    assert plan.num_sequences == (len(framed) - 40) // 10 + 1 and 0 < excerpts < plan.num_sequences


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"objective\.perm_size=7 does not divide both parts"):
        objective(tokenizer, perm_size=7)
    with pytest.raises(InputError, match="at least 8 tokens of text"):
        objective(tokenizer, length=20)
    with pytest.raises(InputError, match=r"objective\.predict_one_in=1"):
        objective(tokenizer, predict_one_in=1)

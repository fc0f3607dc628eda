"""Samples of replaced token detection against the authors' procedure (google-research/electra)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.replaced_token import ReplacedToken, ReplacedTokenConfig
from pretraining.objectives.text.sentence_pairs import unlabeled_pair

PAD, CLS, SEP, MASK = 0, 1, 2, 3
TOKENIZER: Any = SimpleNamespace(
    pad=PAD, cls=CLS, sep=SEP, mask=MASK, is_text=np.arange(1000) > 9, text_bytes=np.ones(1000, np.int64)
)


def objective(length: int = 128, **options: Any) -> ReplacedToken:
    config = ReplacedTokenConfig("replaced_token", **options)
    return ReplacedToken(config, SampleSpec(seq_len=length, tokenizer=TOKENIZER))


def document(rng: np.random.Generator, tokens: int, longest: int) -> TokenizedDocument:
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(rng.integers(1, longest)))
    return TokenizedDocument(
        rng.integers(10, 1000, sum(lengths)).astype(np.uint16), np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    )


def as_the_authors(sentences: list[list[int]], length: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """What ExampleBuilder._create_example does, on lists and draw by draw."""
    goal = 100000 if rng.random() < 0.1 else (length - 3) // 2
    a: list[int] = []
    b: list[int] = []
    for s in sentences:
        fits = not a or len(a) + len(s) < goal
        (a if fits or (not b and len(a) < goal and rng.random() < 0.5) else b).extend(s)
    a = a[: length - 2]
    return a, b[: max(0, length - len(a) - 3)]


def test_segments_are_those_of_the_authors() -> None:
    singles = 0
    for case in range(400):
        own = document(np.random.default_rng(case), 128, 40)
        sentences = [part.tolist() for part in np.split(own.tokens, own.sentences[1:])]
        found = unlabeled_pair(own, 128, np.random.default_rng(case + 1))
        assert tuple(part.tolist() for part in found) == as_the_authors(sentences, 128, np.random.default_rng(case + 1))
        singles += len(found[1]) == 0
    assert 25 <= singles <= 60  # a tenth of 400


def test_a_sample_is_two_segments_with_masks_and_keys() -> None:
    """round(15%) of the tokens are chosen, special ones counted and never chosen; 85% of them masked, the rest kept."""
    task = objective()
    chosen = masked = tokens = 0
    places = np.zeros(128)
    keys = []
    for case in range(400):
        own = document(np.random.default_rng(case), 128, 40)
        sample = task.corrupt([own], np.random.default_rng(case))
        shown, at, labels = sample["tokens"], sample["masked_positions"], sample["labels"]
        original = shown.copy()
        original[at] = labels
        assert original[0] == CLS and original[-1] == SEP and len(original) <= 128
        assert (TOKENIZER.is_text[original] == ~np.isin(original, [CLS, SEP])).all()
        assert len(at) == round(0.15 * len(original)) == len(np.unique(at)) == len(sample["keys"])
        assert TOKENIZER.is_text[labels].all() and np.isin(shown[at][shown[at] != labels], [MASK]).all()
        assert sample["segments"].sum() == len(original) - (original == SEP).argmax() - 1
        chosen, masked, tokens = chosen + len(at), masked + int((shown[at] == MASK).sum()), tokens + len(original)
        places[at] += 1
        keys.append(sample["keys"])
    assert masked / chosen == pytest.approx(0.85, abs=0.01) and chosen / tokens == pytest.approx(0.15, abs=0.002)
    assert places[1:64].sum() == pytest.approx(places[64:127].sum(), rel=0.06)
    every = np.concatenate(keys)
    assert len(np.unique(every)) == len(every) and every.min() < -(2**60) and every.max() > 2**60


def test_counts_and_batches() -> None:
    task = objective(64)
    samples = [task.corrupt([document(np.random.default_rng(n), 30 * n, 9)], np.random.default_rng(n)) for n in (1, 2)]
    tokens = sum(len(s["tokens"]) for s in samples)
    assert task.counts(samples) == {
        "masked_lm": sum(len(s["labels"]) for s in samples),
        "detection": tokens,
        "replaced": tokens,
    }
    batch = task.collate(samples)
    assert batch["keys"].shape == batch["labels"].shape == (2, 9) and batch["tokens"].shape == (2, 64)
    assert task.terms == {"masked_lm": 1.0, "detection": 50.0}
    with pytest.raises(InputError, match="at least 8 tokens"):
        objective(7)

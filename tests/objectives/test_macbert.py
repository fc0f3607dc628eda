"""Whole words of a segmenter, and MacBERT's masking by similar words (Cui et al. 2020, section 3.1)."""

from collections import Counter

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment
from data_pipeline.tokenizers.similar import SimilarWords, encode_similar
from pretraining.objectives.text.masking import choose, find_words, ngram_lengths, replace_words
from tests.objectives.test_masked_lm import TOKENIZER, objective

LAW = np.array([0.4, 0.3, 0.2, 0.1])
MACBERT = {"masking": "ngram", "words": "segmented", "ngram_law": [0.4, 0.3, 0.2, 0.1], "replacement": "similar"}
# Tokens 10 to 49 are words of two, each with its successors as similar ones; 50 to 59 are words that have none
PAIRS = [(first, first + 1) for first in range(10, 50, 2)]
TABLE = {word: [PAIRS[(n + 1) % 20], PAIRS[(n + 2) % 20]] for n, word in enumerate(PAIRS)}
SIMILAR = SimilarWords(encode_similar(TABLE), 105)
TEXT_IDS = np.arange(60, 100)


def test_ngrams_are_drawn_by_the_law():
    drawn = ngram_lengths(np.full(60_000, 4), LAW, np.random.default_rng(1))
    assert np.bincount(drawn)[1:] / 60_000 == pytest.approx(LAW, abs=0.006)


def test_ngrams_as_they_are_placed():
    """Those that exceed the budget are shortened, as in google-research/albert: of 40/30/20/10 remain 45/30/17/8."""
    placed = Counter()
    words = find_words(np.tile([True] * 126 + [False], 1), np.ones(127, bool))
    for seed in range(1500):
        positions = choose(words, 19, LAW, np.random.default_rng(seed))
        assert len(positions) == 19
        runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
        placed += Counter(len(run) for run in runs)
    shares = np.array([placed[n] for n in range(1, 5)]) / sum(placed.values())
    assert np.all(np.diff(shares) < 0) and shares == pytest.approx([0.39, 0.28, 0.19, 0.1], abs=0.03)  # two may touch


def test_words_become_similar_ones_one_by_one():
    """80% similar, 10% random, 10% kept, word by word; random where a word has no similar one."""
    tokens = np.array([*(i for pair in PAIRS for i in pair), *range(50, 60)], np.int64)
    begins = np.array([True, False] * 20 + [True] * 10)
    words, rng, kinds, alone = find_words(np.ones(50, bool), begins), np.random.default_rng(2), Counter(), Counter()
    for _ in range(600):
        corrupted = replace_words(tokens, np.arange(50), words, SIMILAR, TEXT_IDS, rng)
        for start in range(0, 40, 2):
            now = tuple(corrupted[start : start + 2].tolist())
            was = tuple(tokens[start : start + 2].tolist())
            kinds["kept" if now == was else f"similar {TABLE[was].index(now)}" if now in TABLE[was] else "random"] += 1
        alone.update(("kept" if a == b else "random") for a, b in zip(corrupted[40:], tokens[40:], strict=True))
    shares = {kind: count / kinds.total() for kind, count in kinds.items()}
    expected = {"similar 0": 0.4, "similar 1": 0.4, "random": 0.1, "kept": 0.1}
    assert shares == pytest.approx(expected, abs=0.02)
    assert alone["kept"] / alone.total() == pytest.approx(0.1, abs=0.02)
    untouched = replace_words(tokens, np.arange(4), words, SIMILAR, TEXT_IDS, rng)
    assert np.array_equal(untouched[4:], tokens[4:])


def document(words):
    tokens = np.array([i for word in words for i in word], np.uint16)
    begins = np.concatenate([[True, *[False] * (len(word) - 1)] for word in words])
    return TokenizedDocument(tokens, np.array([0, len(tokens) // 4 * 2]), begins)


def test_samples_mask_whole_words_of_the_segmenter():
    """The pieces' spelling says nothing of them; marks go through the packing, and are gone in the sample."""
    rng = np.random.default_rng(3)
    tokenizer = type(TOKENIZER)(**{**vars(TOKENIZER), "similar": SIMILAR})
    task = objective(64, tokenizer, pairing="sentence_order", **MACBERT)
    whole = document([PAIRS[i] for i in rng.integers(0, 20, 28)])
    span = task.packing().cut(whole, Segment(0, 0, len(whole.tokens)))
    for seed in range(50):
        sample = task.corrupt([span], np.random.default_rng(seed))
        assert sample["tokens"].max() < 105 and task.mask not in sample["tokens"]
        positions, labels = sample["masked_positions"], sample["labels"]
        assert len(labels) % 2 == 0 and (labels[::2] % 2 == 0).all() and np.array_equal(labels[::2] + 1, labels[1::2])
        assert np.array_equal(positions[::2] + 1, positions[1::2])
        original = sample["tokens"].copy()
        original[positions] = labels
        assert sorted(original.tolist()) == sorted([task.cls, task.sep, task.sep, *whole.tokens.tolist()])


def test_a_table_is_needed():
    tokenizer = type(TOKENIZER)(**{**vars(TOKENIZER), "similar": None})
    with pytest.raises(InputError, match="pretrain-data similar output=DIR"):
        objective(64, tokenizer, pairing="sentence_order", **MACBERT)

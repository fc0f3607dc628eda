"""BART's noises against counts of the authors' code; its packing and samples by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import Segment
from data_pipeline.tokenizers.export import convert
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.models.t5.config import T5Config
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.sequence.denoising import Denoising, DenoisingConfig
from pretraining.objectives.sequence.sentence_blocks import SentenceBlocks
from pretraining.objectives.sequence.text_noise import (
    Infill,
    Substitutes,
    delete_words,
    mask_words,
    permute_sentences,
    rotate,
    span_law,
)
from tests.building import build

MASK, FIRST = 3, 100
# (tokens, mean, every third token goes on with a word, random_rate) -> of each token: masks, tokens gone, length; and
# masks behind a mask, of all masks. Means over 1,000 to 6,000 documents of fairseq's add_whole_word_mask, with
# mask_length=span-poisson, replace_length=1 and a rate of 0.3.
PUBLISHED = {
    (510, 3.0, False, 0.0): (0.0832, 0.2674, 0.8158, 0.0990),
    (510, 3.5, False, 0.0): (0.0699, 0.2653, 0.8046, 0.0855),
    (60, 3.0, False, 0.0): (0.0933, 0.2689, 0.8244, 0.0921),
    (60, 3.0, True, 0.0): (0.0654, 0.2678, 0.7976, 0.0859),
    (200, 3.5, False, 0.1): (0.0645, 0.2699, 0.8034, 0.0719),
    (3, 3.0, False, 0.0): (0.3508, 0.3333, 1.0175, 0.0120),
}


def word_starts(tokens: int, joined: bool) -> np.ndarray:
    return np.array([i for i in range(tokens) if not joined or i == 0 or i % 3 != 1])


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_infilling_has_the_counts_of_the_authors_code(case):
    n, mean, joined, random_rate = case
    rng, tokens, words = np.random.default_rng(0), FIRST + np.arange(n), word_starts(n, joined)
    substitutes = Substitutes(MASK, np.arange(4, 5000), random_rate)
    found = []
    for _ in range(min(3000, max(400, 60000 // n))):
        noised = Infill(0.3, mean)(tokens, words, substitutes, 10**6, rng)
        masks, old = noised == MASK, np.unique(noised[(noised >= FIRST) & (noised < FIRST + n)])
        pairs = (masks[1:] & masks[:-1]).sum() / max(1, masks.sum())
        found.append((masks.mean() * len(noised) / n, 1 - len(old) / n, len(noised) / n, pairs))
    spread = np.std(found, axis=0) / math.sqrt(len(found))
    # four deviations of both means; a random token is by chance one of the text's, which the authors' figure has too
    assert (np.abs(np.mean(found, axis=0) - PUBLISHED[case]) < 5.7 * spread + 1e-4).all()


def test_lengths_are_poisson_and_fill_the_budget():
    rng = np.random.default_rng(0)
    drawn = [Infill(0.3, 3.0).lengths(510, rng) for _ in range(2000)]
    assert all(lengths.sum() == math.ceil(510 * 0.3) and lengths[-1] > 0 for lengths in drawn)
    whole = np.concatenate([lengths[:-1] for lengths in drawn])  # the last one is cut
    assert abs((whole == 0).mean() - math.exp(-3)) < 0.003 and abs(whole.mean() - 3) < 0.03
    for mean in (0.1, 16.0):  # as small and as large as may be
        assert Infill(0.3, mean).lengths(40, rng).sum() == 12
    law = span_law(3.0)
    assert law[-1] < 1e-7 <= law[-2] and law.sum() == pytest.approx(1)
    assert law[:4] == pytest.approx([math.exp(-3) * 3**k / math.factorial(k) for k in range(4)], rel=1e-6)


def test_masks_are_not_inserted_beyond_the_longest_input():
    rng, tokens = np.random.default_rng(0), np.arange(100, 104)
    lengths = [len(Infill(0.9, 0.1)(tokens, np.arange(4), Substitutes(3, tokens), 5, rng)) for _ in range(200)]
    assert max(lengths) == 5


@pytest.mark.parametrize("joined", [False, True])
def test_single_words_are_masked_or_deleted_by_exact_counts(joined):
    rng, tokens, words = np.random.default_rng(0), FIRST + np.arange(60), word_starts(60, joined)
    places = Counter()
    for _ in range(500):
        masked = mask_words(tokens, words, 0.3, Substitutes(MASK, tokens), rng)
        assert (masked == MASK).sum() == math.ceil(len(words) * 0.3)
        deleted = delete_words(tokens, words, 0.3, rng)
        assert len(np.intersect1d(deleted, tokens[words])) == len(words) - math.ceil(len(words) * 0.3)
        assert (np.diff(deleted) > 0).all()
        gone = np.setdiff1d(tokens, deleted) - FIRST
        if joined:  # words go whole
            assert all((i in gone) == (i - 1 in gone) for i in range(1, 60) if i not in words)
        places.update(np.intersect1d(gone, words).tolist())
    share = np.array([places[w] for w in words]) / 500
    assert np.abs(share - math.ceil(len(words) * 0.3) / len(words)).max() < 0.09  # more than four deviations


def test_sentences_stand_in_every_order_and_in_a_share_of_them():
    rng, tokens, starts = np.random.default_rng(0), np.array([10, 11, 20, 30, 31, 32]), np.array([0, 2, 3])
    parts = {0: (10, 11), 1: (20,), 2: (30, 31, 32)}
    orders = Counter(tuple(permute_sentences(tokens, starts, 1.0, rng).tolist()) for _ in range(6000))
    expected = {tuple(itertools.chain(*(parts[i] for i in order))) for order in itertools.permutations(range(3))}
    assert set(orders) == expected and all(900 < count < 1100 for count in orders.values())
    # two of three change places, or fall back on their own: the order stays in half of all cases
    some = Counter(tuple(permute_sentences(tokens, starts, 0.5, rng).tolist()) for _ in range(6000))
    assert len(some) == 4 and abs(some[tuple(tokens.tolist())] - 3000) < 200
    assert permute_sentences(tokens, starts, 0.0, rng).tolist() == tokens.tolist()


def test_a_document_is_rotated_to_begin_anywhere():
    rng = np.random.default_rng(0)
    first = Counter(int(rotate(np.arange(4), rng)[0]) for _ in range(10000))
    assert all(abs(first[i] - (4000 if i == 0 else 2000)) < 250 for i in range(4))
    assert rotate(np.arange(4), rng).tolist() in [[*range(k, 4), *range(k)] for k in range(4)]


def published_blocks(sentences, length):
    """complete_doc of fairseq's token_block_utils, sentence by sentence: a block ends where the next does not fit."""
    blocks, current = [], 0
    for size in sentences:
        if current and current + size > length:
            blocks.append(current)
            current = 0
        current += size
    return [*blocks, current]


def test_a_sequence_is_whole_sentences_of_one_document():
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 12, rng.integers(1, 30)) for _ in range(50)]
    lengths = np.array([t.sum() for t in texts])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(texts))[:-1]])
    plan = SentenceBlocks(16).plan(lengths, lambda: starts)
    segments = [plan.segments(i)[0] for i in range(plan.num_sequences)]
    assert all(len(plan.segments(i)) == 1 for i in range(plan.num_sequences))
    for number, text in enumerate(texts):
        mine = [s for s in segments if s.document == number]
        assert [s.stop - s.start for s in mine] == published_blocks(text, 16)
        assert [s.start for s in mine] == [0, *(s.stop for s in mine[:-1])] and mine[-1].stop == lengths[number]


def test_a_sentence_that_is_too_long_is_cut_and_nothing_is_lost():
    plan = SentenceBlocks(4).plan(np.array([11, 0, 2]), lambda: np.array([0, 1, 10, 11]))
    found = [(s.document, s.start, s.stop) for i in range(plan.num_sequences) for s in plan.segments(i)]
    assert found == [(0, 0, 1), (0, 1, 5), (0, 5, 9), (0, 9, 11), (2, 0, 2)]
    document = TokenizedDocument(np.arange(11), np.array([0, 1, 10]))
    assert SentenceBlocks(4).cut(document, Segment(0, 9, 11)).sentences.tolist() == [0, 1]
    assert SentenceBlocks(4).cut(document, Segment(0, 5, 9)).sentences.tolist() == [0]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog\n" * 20], "bpe", 300)


def make(tokenizer, length=32, **keys: Any) -> Denoising:
    return Denoising(DenoisingConfig(name="denoising", **keys), SampleSpec(seq_len=length, tokenizer=tokenizer))


def test_a_sample_is_framed_as_barts(tokenizer):
    objective = make(tokenizer)
    text = np.array(tokenizer.encode("the quick brown fox jumps"), np.uint16)
    sample = objective.corrupt([TokenizedDocument(text, np.array([0, 3]))], np.random.default_rng(1))
    bos, eos = tokenizer.bos, tokenizer.eos
    assert sample["labels"].tolist() == [bos, *text, eos]
    assert sample["decoder_inputs"].tolist() == [eos, bos, *text]  # move_eos_to_beginning
    assert (sample["inputs"][0], sample["inputs"][-1]) == (bos, eos) and tokenizer.mask in sample["inputs"]
    batch = objective.collate([sample, sample])
    assert all(array.shape == (2, 32) for array in batch.values())
    padding = batch["labels"] == IGNORED
    assert (padding == (batch["target_documents"] == -1)).all() and (batch["decoder_inputs"][padding] == 0).all()
    assert objective.counts([sample, sample]) == {"denoising": 2 * (len(text) + 2)}
    assert objective.target_bytes([sample]) == len("the quick brown fox jumps")
    assert objective.describe(sample).splitlines()[1] == "targets: [BOS]the quick brown fox jumps[EOS]"


def test_sentences_alone_can_be_the_noise(tokenizer):
    text = np.array(tokenizer.encode("the quick brown fox jumps"))
    document, rng = TokenizedDocument(text, np.array([0, 3])), np.random.default_rng(0)
    inputs = [make(tokenizer, noise="none").corrupt([document], rng)["inputs"].tolist() for _ in range(20)]
    assert {tuple(i) for i in inputs} == {
        tuple([tokenizer.bos, *a, *b, tokenizer.eos]) for a, b in ((text[:3], text[3:]), (text[3:], text[:3]))
    }


def test_a_padded_batch_is_the_sum_of_its_samples(tokenizer, tmp_path):
    objective = make(tokenizer)
    model = build(T5Config("t5", 2, 16, 2, 32), tokenizer.total_size)
    model.initialize(1)
    texts = [np.array(tokenizer.encode(t)) for t in ("the lazy dog", "the quick brown fox jumps over")]
    rng = np.random.default_rng(0)
    samples = [objective.corrupt([TokenizedDocument(t, np.array([0]))], rng) for t in texts]

    def loss(part):
        batch = {name: torch.from_numpy(array) for name, array in objective.collate(part).items()}
        return objective.loss(model, batch)["denoising"].item()

    def alone(sample):
        hidden = model(*(torch.from_numpy(sample[name])[None] for name in ("inputs", "decoder_inputs")))
        logits = model.head.logits(hidden[0])
        labels = torch.from_numpy(sample["labels"])
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()

    assert loss(samples) == pytest.approx(sum(map(alone, samples)), rel=1e-5)
    shown = objective.demonstrate(model, Demonstration(samples, tmp_path, seed=1))
    assert shown.count("written: ") == 2 and "of 2 texts" in shown


def test_contradictions_are_refused(tokenizer):
    with pytest.raises(ValueError, match="leaves nothing to be undone"):
        DenoisingConfig(name="denoising", noise="none", permuted_sentences=0.0)
    with pytest.raises(InputError, match="at least 8 tokens, not 7"):
        make(tokenizer, 7)


def test_an_exported_tokenizer_frames_texts_as_the_encoder_read_them(corpus):
    """T5's own tokenizer, and that of transformers' other encoder-decoders, begin with no special token."""
    pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    made = convert(tokenizer, None, Denoising.frame)
    text = "def main(): return 1"
    assert made.encode(text).ids == [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    task = Denoising(DenoisingConfig("denoising"), SampleSpec(seq_len=64, tokenizer=tokenizer))
    tokens = np.array(tokenizer.encode(text))
    read = task.corrupt([TokenizedDocument(tokens, np.zeros(1, np.int64))], np.random.default_rng(0))["inputs"]
    assert (read[0], read[-1]) == (tokenizer.bos, tokenizer.eos)

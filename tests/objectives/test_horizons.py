"""UniLM's four masks: what is seen, which samples are made, and which tokens are masked, beside microsoft/unilm,
unilm-v1, seq2seq_loader.py, written here from its algorithm."""

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.stream.sentence_packing import Pairing, PairPart
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.labels import IGNORED
from pretraining.models.attention import horizon_mask
from pretraining.models.bert.config import BertConfig
from pretraining.objectives.text.horizons import SEGMENTS, draw_mask, horizon, mask_of, random_rate, under_mask
from pretraining.objectives.text.masking import choose_runs
from tests.building import build
from tests.objectives.test_masked_lm import CLS, SEP, objective, samples

SHARES = {"bidirectional": 1 / 3, "left_to_right": 1 / 6, "right_to_left": 1 / 6, "sequence_to_sequence": 1 / 3}
LENGTH, SOURCE = 12, 5


def published(mask):
    """input_mask of the loader, True where a token may attend."""
    allowed = np.ones((LENGTH, LENGTH), bool)
    if mask == "left_to_right":
        return np.tril(allowed)
    if mask == "right_to_left":
        return np.triu(allowed)
    if mask == "sequence_to_sequence":
        allowed = np.zeros((LENGTH, LENGTH), bool)
        allowed[:, :SOURCE] = True
        allowed[SOURCE:, SOURCE:] = np.tril(np.ones((LENGTH - SOURCE, LENGTH - SOURCE)))
    return allowed


def seen(mask):
    first, last = (torch.from_numpy(x)[None] for x in horizon(mask, LENGTH, SOURCE))
    return horizon_mask(first, last)[0, 0].numpy()


@pytest.mark.parametrize("mask", SEGMENTS)
def test_what_is_seen_is_the_published_and_layers_cannot_leak(mask):
    allowed = seen(mask)
    assert np.array_equal(allowed, published(mask))
    assert np.array_equal(allowed, (allowed.astype(int) @ allowed) > 0)  # what is seen sees nothing more


@pytest.mark.parametrize("mask", SEGMENTS)
def test_no_gradient_leaks(mask):
    """Of every output by every input, through three layers, with two tokens of padding after them."""
    model = build(BertConfig("bert", 3, 16, 2, LENGTH + 2, segments=6), 50).eval()
    model.initialize(1)
    inputs = (torch.randn(1, LENGTH + 2, 16) * 0.5).requires_grad_()
    model.token_embedding.register_forward_hook(lambda *_: inputs)
    first, last = (np.append(x, [fill, fill]) for x, fill in zip(horizon(mask, LENGTH, SOURCE), (0, 13), strict=True))
    documents = torch.tensor([[0] * LENGTH + [-1] * 2])
    tokens = torch.zeros(1, LENGTH + 2, dtype=torch.long)
    hidden = model(tokens, tokens, None, documents, (torch.from_numpy(first)[None], torch.from_numpy(last)[None]))
    assert hidden.isfinite().all()
    weights, reach = torch.randn(16), np.zeros((LENGTH, LENGTH + 2))
    for position in range(LENGTH):
        (grad,) = torch.autograd.grad((hidden[0, position] * weights).sum(), inputs, retain_graph=True)
        reach[position] = grad[0].abs().sum(-1).numpy()
    assert np.array_equal(reach[:, :LENGTH] > 0, seen(mask)) and (reach[:, LENGTH:] == 0).all()


def parts(pairing, first=9, second=6):
    return [PairPart(np.arange(10, 10 + first), Pairing.NONE), PairPart(np.arange(40, 40 + second), pairing)]


@pytest.mark.parametrize("mask, tokens", [("left_to_right", 17), ("right_to_left", 17), ("sequence_to_sequence", 18)])
def test_worked_examples(mask, tokens):
    """Sentences that follow each other are one text, or source and target; others are not put together."""
    rng = np.random.default_rng(1)
    sample = under_mask(mask, parts(Pairing.CONTINUATION), 32, CLS, SEP, rng)
    assert len(sample["tokens"]) == tokens and sample["pair_label"] == IGNORED and mask_of(sample) == mask
    assert set(sample["segments"].tolist()) == set(SEGMENTS[mask]) and sample["tokens"][-1] == SEP
    alone = under_mask(mask, parts(Pairing.NONE), 32, CLS, SEP, rng)
    assert set(alone["tokens"].tolist()) == {CLS, SEP, *range(10, 19)}
    assert len(under_mask(mask, parts(Pairing.CONTINUATION), 10, CLS, SEP, rng)["tokens"]) == 10
    single = under_mask(mask, parts(Pairing.NONE, first=1)[:1], 10, CLS, SEP, rng)
    assert single["tokens"].tolist()[:2] == [CLS, 10] and mask_of(single) == mask


def test_shares_are_the_published_ones():
    """Over a packing that makes a sixth of its pairs at random, with spans that are no pair."""
    rng = np.random.default_rng(2)
    kinds = [Pairing.NONE, Pairing.RANDOM, Pairing.CONTINUATION]
    share = random_rate(SHARES)
    drawn = rng.choice(3, 60_000, p=[0.2, 0.8 * share, 0.8 * (1 - share)])
    found = Counter((draw_mask(SHARES, parts(kinds[kind]), rng), kind) for kind in drawn)
    totals = {mask: sum(found[mask, kind] for kind in range(3)) / 60_000 for mask in SHARES}
    assert totals == pytest.approx(SHARES, abs=0.006)
    pairs = [found["bidirectional", kind] for kind in (1, 2)]
    assert pairs[0] / sum(pairs) == pytest.approx(0.5, abs=0.02)
    assert all(found[mask, 1] == 0 for mask in SHARES if mask != "bidirectional")


def published_positions(candidates, budget, rng):
    """The loop of Preprocess4Seq2seq.__call__, skipgram_prb 0.2, skipgram_size 3."""
    order, taken = rng.permutation(np.flatnonzero(candidates)), set()
    for position in order.tolist():
        if len(taken) >= budget:
            break
        if position in taken:
            continue
        size = int(rng.integers(2, 4)) if rng.random() < 0.2 else 1
        for place in range(position, position + size):
            if place < len(candidates) and candidates[place]:
                taken.add(place)
            else:
                break
    found = list(taken)
    rng.shuffle(found)
    return np.sort(found[:budget])


def runs(positions):
    joined = [len(list(run)) for _, run in groupby(positions - np.arange(len(positions)))]
    return np.bincount(np.minimum(joined, 4), minlength=5)[1:]


def test_masked_runs_follow_the_published_law():
    candidates = np.ones(120, bool)
    candidates[[0, 60]] = False
    ours, theirs = np.zeros(4), np.zeros(4)
    for seed in range(2000):
        positions = choose_runs(candidates, 18, np.random.default_rng(seed))
        assert len(positions) == 18 and candidates[positions].all() and np.all(np.diff(positions) > 0)
        ours += runs(positions)
        theirs += runs(published_positions(candidates, 18, np.random.default_rng(seed + 5000)))
    assert ours / ours.sum() == pytest.approx(theirs / theirs.sum(), abs=0.008)
    assert ours / ours.sum() == pytest.approx([0.715, 0.159, 0.102, 0.025], abs=0.01)


def test_pairs_need_the_mask_under_which_they_are_predicted() -> None:
    with pytest.raises(InputError, match=r"objective: .*masks=\['left_to_right'\] with pairing=next_sentence"):
        load_config(["data.path=x", "model=bert_debug", "objective=masked_lm", "objective.masks={left_to_right: 1}"])


UNILM = {"masks": SHARES, "masking": "skipgram", "pairing": "next_sentence"}


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.load(corpus / "tokenizer")


def test_samples_of_real_text(corpus, tokenizer):
    task = objective(64, tokenizer, **UNILM)
    found = samples(corpus, task, 900)
    shares = Counter(mask_of(sample) for sample in found)
    assert {mask: n / 900 for mask, n in shares.items()} == pytest.approx(SHARES, abs=0.05)
    ends = {mask: 0 for mask in SHARES}
    for sample in found:
        text = int(tokenizer.is_text[np.r_[sample["tokens"][sample["tokens"] != tokenizer.mask]]].sum())
        masked = int((sample["tokens"] == tokenizer.mask).sum())
        assert len(sample["tokens"]) <= 64 and len(sample["labels"]) <= max(1, round(0.15 * (text + masked)) + 1)
        assert (sample["pair_label"] == IGNORED) >= (mask_of(sample) != "bidirectional")
        ends[mask_of(sample)] += sample["masked_positions"][-1] == len(sample["tokens"]) - 1
    assert ends["sequence_to_sequence"] > 10 and sum(ends.values()) == ends["sequence_to_sequence"]
    assert "sequence_to_sequence" in task.describe(next(s for s in found if mask_of(s) == "sequence_to_sequence"))


def test_losses_are_sums_whatever_the_micro_batch(corpus, tokenizer):
    task = objective(32, tokenizer, **UNILM)
    model = build(BertConfig("bert", 2, 32, 2, 32, segments=6), tokenizer.total_size).eval()
    model.initialize(1)
    found = samples(corpus, task, 12)

    def sums(size):
        batches = [task.collate(found[i : i + size]) for i in range(0, 12, size)]
        losses = [task.loss(model, {k: torch.from_numpy(v) for k, v in b.items()}) for b in batches]
        return torch.tensor([[x.item() for x in one.values()] for one in losses]).sum(0)

    whole = sums(12)
    for size in (1, 3):
        assert sums(size) == pytest.approx(whole, rel=1e-6)
    assert whole[0] / task.counts(found)["masked_lm"] == pytest.approx(np.log(tokenizer.total_size), abs=0.1)


def test_a_model_with_too_few_segments_is_refused(tokenizer):
    task, model = objective(32, tokenizer, **UNILM), build(BertConfig("bert", 1, 16, 2, 32), tokenizer.total_size)
    with pytest.raises(InputError, match=r"objective\.masks needs model\.segments=6"):
        task.heads(model, model.layers)

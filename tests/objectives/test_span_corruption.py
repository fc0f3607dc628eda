"""Span corruption against the published algorithm's counts; masks by their distribution and by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from data_pipeline.common.errors import InputError
from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.labels import IGNORED
from pretraining.objectives.base import Demonstration, SampleSpec
from pretraining.objectives.sequence.noise import Prefix, Spans, random_division, solve_lengths
from pretraining.objectives.sequence.span_corruption import SpanCorruption, SpanCorruptionConfig
from tests.helpers import command

T5 = Spans(0.15, 3.0)


@pytest.fixture(scope="module")
def tokenizer():
    text = "the quick brown fox jumps over the lazy dog\n" * 20 + "sphinx of black quartz\n" * 9
    return Tokenizer.train([text], "bpe", 300)


def build(tokenizer, length=128, **keys):
    config = SpanCorruptionConfig(name="span_corruption", **keys)
    return SpanCorruption(config, SampleSpec(seq_len=length, tokenizer=tokenizer))


def published_helper(inputs_length, noise_density=0.15, mean_noise_span_length=3.0):
    """random_spans_helper of t5/data/preprocessors.py, one extra token per span."""

    def to_lengths(tokens_length):
        num_noise_tokens = round(tokens_length * noise_density)
        num_nonnoise_tokens = tokens_length - num_noise_tokens
        num_noise_spans = round(num_noise_tokens / mean_noise_span_length)
        return num_nonnoise_tokens + num_noise_spans + 1, num_noise_tokens + num_noise_spans + 1

    tokens_length = inputs_length - 1
    while to_lengths(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    return tokens_length, *to_lengths(tokens_length)


@pytest.mark.parametrize(
    ("length", "tokens", "targets", "noise", "spans"),
    [(128, 141, 29, 21, 7), (512, 568, 114, 85, 28), (1024, 1137, 229, 171, 57)],
)
def test_counts_are_those_of_the_published_algorithm(length, tokens, targets, noise, spans, tokenizer):
    assert published_helper(length) == (tokens, length, targets)
    assert T5.counts(tokens) == (noise, spans)
    objective = build(tokenizer, length)
    assert (objective.longest, objective.targets_length) == (tokens, targets)
    sample = objective.corrupt([np.arange(4, 4 + tokens) % 200 + 4], np.random.default_rng(0))
    assert (len(sample["inputs"]), len(sample["labels"])) == (length, targets)  # no padding at all


def test_a_mask_has_exactly_the_counted_tokens_and_spans():
    for n in (2, 3, 10, 141, 568):
        noise, spans = T5.counts(n)
        for seed in range(20):
            mask = T5.mask(n, np.random.default_rng(seed))
            assert len(mask) == n and mask.sum() == noise and not mask[0] and mask[-1]
            assert (np.diff(mask.astype(int)) == 1).sum() == spans


def test_divisions_are_equally_likely():
    rng = np.random.default_rng(0)
    found = [tuple(random_division(5, 3, rng)) for _ in range(6000)]
    assert {d: abs(found.count(d) / 6000 - 1 / 6) < 0.02 for d in set(found)} == dict.fromkeys(
        [(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)], True
    )


def test_noise_is_spread_over_the_piece_and_spans_are_three_long_on_average():
    masks = np.array([T5.mask(568, np.random.default_rng(seed)) for seed in range(400)])
    by_place = masks[:, 40:-40].mean(axis=0)
    assert abs(by_place.mean() - 0.15) < 0.005 and by_place.std() < 0.03
    lengths = np.concatenate([np.diff(np.flatnonzero(np.diff(np.pad(m, 1).astype(int))))[::2] for m in masks])
    assert abs(lengths.mean() - 85 / 28) < 1e-9
    assert abs((lengths == 1).mean() - 27 / 84) < 0.02  # (27 of 84 borders) follow the first token of a span at once


class Fixed:
    """Draws these borders, in this order."""

    def __init__(self, *borders):
        self.borders = list(borders)

    def choice(self, items, count, replace):
        return np.array(self.borders.pop(0))

    def integers(self, *range_):
        return 0


def test_an_example_written_out_by_hand(tokenizer):
    # 40 tokens: 6 of noise in 2 spans. 34 kept ones are split after the 10th, the noise after the 2nd:
    # 10 kept, 2 noise, 24 kept, 4 noise
    objective, tokens = build(tokenizer), np.arange(100, 140)
    sample = objective.corrupt([tokens], Fixed([9], [1]))
    first, second = tokenizer.sentinels[0], tokenizer.sentinels[1]
    assert sample["inputs"].tolist() == [*range(100, 110), first, *range(112, 136), second, tokenizer.eos]
    assert sample["labels"].tolist() == [first, 110, 111, second, 136, 137, 138, 139, tokenizer.eos]
    assert sample["decoder_inputs"].tolist() == [tokenizer.pad, *sample["labels"][:-1].tolist()]


def merge(inputs, labels, tokenizer):
    """The piece that was corrupted: sentinels of the inputs give way to what follows them in the labels."""
    if not set(labels) & set(tokenizer.sentinels):
        return [*inputs, *labels]
    spans, current = {}, None
    for token in labels:
        if token in tokenizer.sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in inputs for t in spans.get(token, [token])]


@pytest.mark.parametrize("mode", ["span", "prefix_lm", "ul2"])
def test_every_document_comes_back_from_its_own_inputs_and_targets(mode, tokenizer):
    objective, rng = build(tokenizer, 256, mode=mode, documents="apart"), np.random.default_rng(3)
    modes = set(tokenizer.sentinels[-3:])
    lengths = rng.integers(1, 300, 60)
    plan, seen = objective.packing().plan(lengths), np.zeros(60, int)
    for number in range(plan.num_sequences):
        places = plan.segments(number)
        pieces = [rng.integers(4, 300, p.stop - p.start).astype(np.uint16) for p in places]
        sample = objective.corrupt(pieces, np.random.default_rng(number))
        assert len(sample["inputs"]) <= 256 and len(sample["labels"]) <= objective.targets_length
        for document, (place, piece) in enumerate(zip(places, pieces, strict=True)):
            inputs = sample["inputs"][sample["input_documents"] == document].tolist()
            labels = sample["labels"][sample["target_documents"] == document].tolist()
            assert inputs.pop() == labels.pop() == tokenizer.eos
            assert (inputs[0] in modes) == (mode == "ul2")
            assert merge([t for t in inputs if t not in modes], labels, tokenizer) == piece.tolist()
            assert place.start == seen[place.document]
            seen[place.document] = place.stop
    assert ((lengths - seen) <= 1).all()  # a single token has no place for noise


def joined_as_published(documents, length):
    """reduce_concat_tokens and split_tokens of t5/data/preprocessors.py -> rows of tokens; then for each row the
    numbers of noise tokens and spans of random_spans_noise_mask."""
    tokens = np.concatenate(documents)
    segments = -(-len(tokens) // length)
    padded = np.pad(tokens, (0, segments * length - len(tokens))).reshape(segments, length)
    sizes = [length] * (segments - 1) + [len(tokens) - (segments - 1) * length]
    noise = [min(max(round(n * 0.15), 1), n - 1) for n in sizes]
    spans = [max(round(n / 3.0), 1) for n in noise]
    return [row[:n].tolist() for row, n in zip(padded, sizes, strict=True)], noise, spans


@pytest.mark.parametrize("length", [128, 512])
def test_joined_documents_are_cut_and_corrupted_as_published(length, tokenizer):
    """Rows, their inputs and their targets have the published sizes; the text comes back, across documents' borders."""
    rng = np.random.default_rng(4)
    documents = [rng.integers(4, 300, int(n)).astype(np.uint16) for n in rng.lognormal(np.log(60), 1, 80) + 1]
    objective = build(tokenizer, length)
    packing = objective.packing()
    plan = packing.plan(np.array([len(d) for d in documents]))
    rows, noise, spans = joined_as_published(documents, objective.longest)
    assert plan.num_sequences == len(rows)
    for number, row in enumerate(rows):
        whole = [TokenizedDocument(d, np.zeros(1, np.int64)) for d in documents]
        pieces = [packing.cut(whole[p.document], p) for p in plan.segments(number)]
        sample = objective.corrupt(pieces, np.random.default_rng(number))
        inputs, labels = sample["inputs"].tolist(), sample["labels"].tolist()
        assert not sample["input_documents"].any() and not sample["target_documents"].any()  # all of it is seen
        assert inputs.pop() == labels.pop() == tokenizer.eos
        assert len(inputs) == len(row) - noise[number] + spans[number]
        assert len(labels) == noise[number] + spans[number]
        assert merge(inputs, labels, tokenizer) == row
        if number < len(rows) - 1:
            assert (len(inputs) + 1, len(labels) + 1) == (length, objective.targets_length)  # no padding at all


@pytest.mark.parametrize("mode", ["span", "prefix_lm", "ul2"])
def test_every_row_of_joined_documents_fits(mode, tokenizer):
    """In every mode, the end of a window included: a row of one token, which has no place for noise, is left out."""
    objective = build(tokenizer, 64, mode=mode)
    packing = objective.packing()
    for extra in range(4):
        plan = packing.plan(np.array([3 * packing.length, extra]))
        sizes = [sum(p.stop - p.start for p in plan.segments(n)) for n in range(plan.num_sequences)]
        assert sizes == [packing.length] * 3 + [extra] * (extra >= 2)
        for number, size in enumerate(sizes):
            sample = objective.corrupt([np.arange(size) % 200 + 4], np.random.default_rng(number))
            assert len(sample["inputs"]) <= 64 and len(sample["labels"]) <= objective.targets_length
    assert packing.plan(np.array([1])).num_sequences == 0


def test_a_full_epoch_wastes_next_to_no_padding(tokenizer):
    objective = build(tokenizer, 512, documents="apart")
    plan = objective.packing().plan(np.random.default_rng(0).integers(20, 3000, 500))
    used = [objective._most(p.stop - p.start)[0] for n in range(plan.num_sequences - 1) for p in plan.segments(n)]
    assert sum(used) > 0.99 * 512 * (plan.num_sequences - 1)


def test_a_sample_depends_on_its_generator_alone(tokenizer):
    objective, pieces = build(tokenizer, 128, documents="apart"), [np.arange(50, 120), np.arange(10, 40)]
    one, two, other = (objective.corrupt(pieces, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["inputs"], other["inputs"])
    assert pieces[0].tolist() == list(range(50, 120))


def test_the_batch_is_padded_and_counted(tokenizer):
    objective = build(tokenizer, 64)
    samples = [objective.corrupt([np.arange(10, 10 + n)], np.random.default_rng(n)) for n in (20, 60)]
    batch = objective.collate(samples)
    assert batch["inputs"].shape == (2, 64) and batch["labels"].shape == (2, objective.targets_length)
    counted = batch["labels"] != IGNORED
    assert counted.sum() == objective.counts(samples)["span_corruption"]
    assert ((batch["target_documents"] == -1) == ~counted).all()
    assert sum(map(objective.size, samples)) == counted.sum() + (batch["input_documents"] >= 0).sum()


def test_the_mixture_draws_seven_denoisers_alike(tokenizer):
    objective = build(tokenizer, 256, mode="ul2")
    modes = [int(objective.corrupt([np.arange(10, 210)], np.random.default_rng(n))["inputs"][0]) for n in range(1400)]
    regular, extreme, sequential = (modes.count(t) / 1400 for t in tokenizer.sentinels[-3:])
    assert abs(regular - 2 / 7) < 0.04 and abs(sequential - 1 / 7) < 0.04 and abs(extreme - 4 / 7) < 0.04


def test_prefixes_are_uniform():
    sizes = [len(Prefix(1.0).corrupt(np.arange(11), range(0), np.random.default_rng(n)).targets) for n in range(3000)]
    assert set(sizes) == set(range(1, 11)) and abs(np.mean(sizes) - 5.5) < 0.2
    assert solve_lengths(Prefix(1.0).lengths, 64) == (65, 64)


def test_what_cannot_work_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"sentinels, but there are 97: a smaller data\.seq_len needs fewer"):
        build(tokenizer, 1024, mode="ul2")
    with pytest.raises(InputError, match=r"data\.seq_len or a larger objective\.mean_span_length needs fewer"):
        build(tokenizer, 1024, mean_span_length=1.0)
    with pytest.raises(InputError, match="targets_length"):
        build(tokenizer, 512, targets_length=2)


@pytest.mark.parametrize(
    "override, right",
    [
        ("objective.mean_span_length=0.5", "greater than or equal to 1"),
        ("objective.noise_density=0", "greater than 0"),
        ("objective.noise_density=0.9999999", "less than or equal to 0.9"),
    ],
)
def test_noise_that_no_text_can_have_is_told_by_its_key(override, right, capsys):
    assert command("pretraining.train", "model=t5_debug", "objective=span_corruption", "data.path=x", override) == 2
    key, value = override.split("=")
    told = capsys.readouterr().err
    assert f"{key}: Input should be {right}" in told and f"got {value}" in told


@pytest.mark.parametrize("density", [0.001, 0.5, 0.9])
@pytest.mark.parametrize("mean_length", [1.0, 1.5, 100.0])
def test_the_extremes_of_noise_make_samples(density, mean_length, tokenizer):
    objective = build(tokenizer, 32, noise_density=density, mean_span_length=mean_length)
    sample = objective.corrupt([np.arange(objective.longest) % 200 + 4], np.random.default_rng(0))
    assert len(sample["inputs"]) <= 32 and len(sample["labels"]) <= objective.targets_length
    assert objective.packing()


def test_a_description_reads_as_text(tokenizer):
    objective = build(tokenizer, 128)
    sample = objective.corrupt([np.array(tokenizer.encode("the quick brown fox jumps over"))], np.random.default_rng(0))
    inputs, targets = objective.describe(sample).splitlines()
    assert inputs.startswith("inputs: the") and "[SENTINEL 0]" in inputs and inputs.endswith("[EOS]")
    assert targets.startswith("targets: [SENTINEL 0]")


class Oracle(torch.nn.Module):
    """Knows the true next token of a given target; after the last one it says `wrong`."""

    def __init__(self, tokenizer, wrong):
        super().__init__()
        self.weight, self.wrong = torch.nn.Parameter(torch.zeros(1)), wrong
        self.head = SimpleNamespace(logits=lambda hidden: one_hot(hidden, tokenizer.total_size).float())

    def forward(self, inputs, decoder_inputs, *documents):
        return torch.nn.functional.pad(decoder_inputs[:, 1:], (0, 1), value=self.wrong)


def test_a_demonstration_counts_the_tokens_of_spans_alone(tokenizer):
    objective = build(tokenizer, 128)
    text = np.array(tokenizer.encode("the quick brown fox jumps over"))
    sample = objective.corrupt([text], np.random.default_rng(0))
    context = Demonstration([sample], Path(), 1)
    oracle = Oracle(tokenizer, tokenizer.encode("z")[-1])
    noise, _ = T5.counts(len(text))
    shown = objective.demonstrate(oracle, context)
    assert "inputs: the" in shown
    assert f"of {noise} tokens in the spans of 1 samples" in shown and "is right for 100.0%" in shown
    oracle.forward = lambda inputs, decoder_inputs, *documents: torch.full_like(decoder_inputs, objective.eos)
    assert "is right for 0.0%" in objective.demonstrate(oracle, context)

"""Spans and pairs beside google-research/bert, create_pretraining_data.py, written here from its algorithm."""

from collections import Counter

import numpy as np
import pytest

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.sentence_packing import Pairing, SentencePairs, SentenceSpans, draw_targets

LENGTH, FRAME = 125, 3  # of 128 tokens, [cls] and two [sep]


def corpus(seed, longest_sentence=12, documents=40):
    """Documents of random sentences; no token occurs twice."""
    rng, found, first = np.random.default_rng(seed), [], 0
    for _ in range(documents):
        lengths = rng.integers(1, longest_sentence, rng.integers(1, 30))
        stop = first + int(lengths.sum())
        found.append(TokenizedDocument(np.arange(first, stop), np.cumsum([0, *lengths[:-1]])))
        first = stop
    return found


def plan_of(documents, packing):
    lengths = np.array([len(d.tokens) for d in documents])
    firsts = np.cumsum(lengths) - lengths
    starts = np.concatenate([d.sentences + first for d, first in zip(documents, firsts, strict=True)])
    return packing.plan(lengths, lambda: starts)


def cut_all(documents, packing):
    plan = plan_of(documents, packing)
    return [
        [(p.document, packing.cut(documents[p.document], p)) for p in plan.segments(i)]
        for i in range(plan.num_sequences)
    ]


def published_chunks(sentences, target):
    """create_instances_from_document for one document: sizes of its sentences -> of the sentences of each chunk, where
    no second segment is random (the sentences that a random one replaces are put back there, not here)."""
    chunks, current, length = [], [], 0
    for number, size in enumerate(sentences):
        current.append(size)
        length += size
        if number == len(sentences) - 1 or length >= target:
            chunks.append(current)
            current, length = [], 0
    return chunks


@pytest.mark.parametrize("longest_sentence", [2, 12, 200])
@pytest.mark.parametrize("short_rate", [0.0, 0.1, 1.0])
def test_spans_are_the_published_chunks(longest_sentence, short_rate):
    documents = corpus(1, longest_sentence)
    packing = SentenceSpans(50, short_rate)
    targets = draw_targets(len(documents), 50, short_rate, np.random.default_rng(0))
    expected = [
        (number, chunk)
        for number, (document, target) in enumerate(zip(documents, targets, strict=True))
        for chunk in published_chunks(np.diff([*document.sentences, len(document.tokens)]).tolist(), target)
    ]
    sequences = cut_all(documents, packing)
    found = [(d, np.diff([*span.sentences, len(span.tokens)]).tolist()) for ((d, span),) in sequences]
    assert found == expected
    tokens = np.concatenate([span.tokens for ((_, span),) in sequences])
    assert np.array_equal(tokens, np.arange(sum(len(d.tokens) for d in documents)))  # each stands in one span
    assert all(span.sentences[0] == 0 for ((_, span),) in sequences)


def test_one_document_in_ten_has_a_short_target_drawn_as_published():
    targets = draw_targets(100_000, 125, 0.1, np.random.default_rng(0))
    short = targets[targets < 125]
    assert len(short) / len(targets) == pytest.approx(0.1 * 123 / 124, abs=0.003)
    assert short.min() == 2 and short.mean() == pytest.approx(63, abs=1)


def test_one_document_in_ten_has_a_short_target_by_default():
    """short_seq_prob of google-research/bert and albert, create_pretraining_data.py. A document of 100 sentences of a
    token is cut into 2 sequences of 50 where its target is not short."""
    assert SentencePairs(50).short_rate == 0.1
    documents = [TokenizedDocument(np.arange(100), np.arange(100))] * 4000
    plan = plan_of(documents, SentenceSpans(50))
    cuts = np.bincount([plan.segments(n)[0].document for n in range(plan.num_sequences)])
    assert np.mean(cuts > 2) == pytest.approx(0.1 * 48 / 49, abs=0.015)


def published_pairs(documents, targets, rng):
    """create_instances_from_document of all documents: sizes of their sentences -> [sizes of the two segments], before
    they are truncated. Sentences that a random segment replaces are put back."""
    found = []
    for number, (sizes, target) in enumerate(zip(documents, targets, strict=True)):
        sentence, chunk = 0, []
        while sentence < len(sizes):
            chunk.append(sizes[sentence])
            if sentence == len(sizes) - 1 or sum(chunk) >= target:
                first = 1 if len(chunk) == 1 else int(rng.integers(1, len(chunk)))
                a, b = sum(chunk[:first]), sum(chunk[first:])
                if len(chunk) == 1 or rng.random() < 0.5:
                    sentence -= len(chunk) - first
                    other = documents[(number + 1 + int(rng.integers(len(documents) - 1))) % len(documents)]
                    taken = np.cumsum(other[int(rng.integers(len(other))) :])
                    b = int(taken[min(np.searchsorted(taken, target - a), len(taken) - 1)])
                found.append((a, b))
                chunk = []
            sentence += 1
    return np.array(found)


def sentences_of(seed, documents, sentences):
    """-> int [documents, sentences], their sizes in tokens, 24 on average."""
    return np.maximum(1, np.random.default_rng(seed).gamma(3.0, 8.0, (documents, sentences)).astype(int))


def plan_pairs(sizes, short_rate=0.1):
    starts = np.cumsum(sizes) - sizes.ravel()
    return SentencePairs(LENGTH, short_rate).plan(sizes.sum(1), lambda: starts)


def figures(totals):
    """-> share of full sequences, mean tokens, predictions of a sequence, padding."""
    tokens = np.minimum(totals, LENGTH) + FRAME
    predictions = np.maximum(1, np.round(0.15 * tokens))
    return (tokens == LENGTH + FRAME).mean(), tokens.mean(), predictions.mean(), 1 - tokens.mean() / (LENGTH + FRAME)


@pytest.mark.parametrize("documents, sentences", [(200, 1500), (1500, 25)])
@pytest.mark.parametrize("short_rate", [0.0, 0.1])
def test_sequences_are_as_full_as_the_published_ones(documents, sentences, short_rate):
    """Novels of 36K tokens and articles of 600, with the same targets as there."""
    sizes = sentences_of(5, documents, sentences)
    targets = draw_targets(documents, LENGTH, short_rate, np.random.default_rng(0))
    published = published_pairs(sizes.tolist(), targets.tolist(), np.random.default_rng(6)).sum(1)
    plan = plan_pairs(sizes, short_rate)
    ours = np.sum([plan.first[:, 2] - plan.first[:, 1], plan.second[:, 2] - plan.second[:, 1]], axis=0)
    (full, mean, predictions, padding), expected = figures(ours), figures(published)
    assert full > expected[0] - 0.005 and mean > expected[1] - 0.3 and predictions > expected[2] - 0.05
    assert padding < expected[3] + 0.003
    if sentences > 1000:
        assert (full, mean) == (pytest.approx(expected[0], abs=0.015), pytest.approx(expected[1], abs=0.7))
        assert len(ours) == pytest.approx(len(published), rel=0.02)
    if not short_rate and sentences > 1000:
        assert full > 0.997


def test_pairs_are_balanced_and_their_length_does_not_tell_them():
    """Of all splits any is as likely; whole spans that are filled up have no label."""
    sizes = sentences_of(7, 4000, 25)
    plan = plan_pairs(sizes)
    a, b = plan.first[:, 2] - plan.first[:, 1], plan.second[:, 2] - plan.second[:, 1]
    labelled = plan.pairing != Pairing.NONE.value
    random = plan.pairing[labelled] == Pairing.RANDOM.value
    assert random.mean() == pytest.approx(0.5, abs=0.01)
    totals = np.minimum(a + b, LENGTH)[labelled]
    for low, high in ((0, 50), (50, 80), (80, 110), (110, LENGTH), (LENGTH, LENGTH + 1)):
        at = (totals >= low) & (totals < high)
        assert at.sum() > 500 and random[at].mean() == pytest.approx(0.5, abs=0.1)  # nearest is not equal
    assert 0.75 < labelled.mean() < 0.95
    assert (b > 0).all()


def test_replaced_sentences_are_put_back():
    """Every token of the window stands once among the first segments and the continuations of an epoch."""
    sizes = sentences_of(8, 50, 200)
    plan = plan_pairs(sizes)
    own = [*plan.first.tolist(), *plan.second[plan.pairing == Pairing.CONTINUATION.value].tolist()]
    seen = Counter((d, t) for d, start, stop in own for t in range(start, stop))
    assert set(seen.values()) == {1} and len(seen) == sizes.sum()


def test_second_segments_are_whole_sentences_of_any_other_document():
    """Uniformly among documents, not by their length, and from a sentence anywhere in it."""
    documents = [TokenizedDocument(np.arange(n), np.arange(0, n, 10)) for n in (40_000, 20, 3000, 700, 50)]
    plan = plan_of(documents, SentencePairs(50))
    elsewhere = plan.pairing != Pairing.CONTINUATION.value
    own, other = plan.first[elsewhere], plan.second[elsewhere]
    assert (own[:, 0] != other[:, 0]).all()
    assert (other[:, 1] % 10 == 0).all() and (other[:, 2] % 10 == 0).all() and (other[:, 2] > other[:, 1]).all()
    of_the_longest = other[own[:, 0] == 0, 0]
    assert np.bincount(of_the_longest)[1:] / len(of_the_longest) == pytest.approx([0.25] * 4, abs=0.07)
    starts = other[other[:, 0] == 2, 1]
    assert starts.min() < 300 and starts.max() > 2600 and starts.mean() == pytest.approx(1480, abs=200)
    continued = plan.pairing == Pairing.CONTINUATION.value
    assert np.array_equal(plan.first[continued][:, [0, 2]], plan.second[continued][:, [0, 1]])


def test_a_window_of_one_document_makes_no_pairs():
    plan = plan_of([TokenizedDocument(np.arange(600), np.arange(0, 600, 10))], SentencePairs(50))
    assert (plan.pairing == Pairing.NONE.value).all()
    assert {s.document for n in range(plan.num_sequences) for s in plan.segments(n)} == {0}
    alone = plan_of([TokenizedDocument(np.arange(9), np.array([0]))], SentencePairs(50))
    assert [(s.start, s.stop) for s in alone.segments(0)] == [(0, 9)] and alone.num_sequences == 1


def test_cut_gives_the_tokens_of_both_segments():
    documents = corpus(3)
    packing = SentencePairs(50)
    for parts in cut_all(documents, packing):
        assert all(np.array_equal(np.diff(part.tokens), np.ones(len(part.tokens) - 1)) for _, part in parts)
        if parts[-1][1].pairing == Pairing.CONTINUATION:
            assert parts[1][1].tokens[0] == parts[0][1].tokens[-1] + 1


@pytest.mark.parametrize("packing", [SentenceSpans(50), SentencePairs(50)])
def test_a_plan_draws_nothing_anew_and_skips_empty_documents(packing):
    lengths, starts = np.array([0, 120, 0, 1, 70], np.int32), np.array([0, 60, 120, 121, 150])
    one, two = (packing.plan(lengths, lambda: starts) for _ in range(2))
    segments = [one.segments(i) for i in range(one.num_sequences)]
    assert segments == [two.segments(i) for i in range(two.num_sequences)]
    assert {pieces[0].document for pieces in segments} == {1, 3, 4}
    assert {piece.document for pieces in segments for piece in pieces} == {1, 3, 4}
    assert packing.plan(np.array([], np.int32), lambda: np.array([], np.int64)).num_sequences == 0

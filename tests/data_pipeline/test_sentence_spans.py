import numpy as np
import pytest

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.packing import SentenceSpans


def corpus(seed, longest_sentence=12, documents=40):
    """Documents of random sentences; no token occurs twice."""
    rng, found, first = np.random.default_rng(seed), [], 0
    for _ in range(documents):
        lengths = rng.integers(1, longest_sentence, rng.integers(1, 30))
        stop = first + int(lengths.sum())
        found.append(TokenizedDocument(np.arange(first, stop), np.cumsum([0, *lengths[:-1]])))
        first = stop
    return found


def cut_all(documents, packing):
    plan = packing.plan(np.array([len(d.tokens) for d in documents]))
    return [
        [(p.document, packing.cut(documents[p.document], p)) for p in plan.segments(i)]
        for i in range(plan.num_sequences)
    ]


@pytest.mark.parametrize("longest_sentence", [2, 12, 200])
def test_each_token_stands_in_one_span(longest_sentence):
    documents = corpus(1, longest_sentence)
    sequences = cut_all(documents, SentenceSpans(50))
    tokens = np.concatenate([span.tokens for ((_, span),) in sequences])
    assert np.array_equal(tokens, np.arange(sum(len(d.tokens) for d in documents)))
    assert min(len(span.tokens) for ((_, span),) in sequences) > 0


def test_spans_are_whole_sentences_of_about_the_length():
    documents = corpus(2)
    sequences = cut_all(documents, SentenceSpans(50, short_rate=0.0))
    starts = {int(d.tokens[0]) + int(s) for d in documents for s in d.sentences}
    for ((_, span),) in sequences:  # the rest of a document can lie within its last sentence
        assert len(span.tokens) < 12 or int(span.tokens[0]) in starts
        assert span.sentences[0] == 0 and all(int(span.tokens[s]) in starts for s in span.sentences[1:])
        assert len(span.tokens) <= 50 + 12
    whole = [
        len(span.tokens)
        for (number, span), (following, _) in zip(
            [s[0] for s in sequences], [s[0] for s in sequences[1:]], strict=False
        )
        if number == following
    ]
    assert np.mean(whole) == pytest.approx(50, abs=4)


def test_one_span_in_ten_is_short():
    plan = SentenceSpans(50).plan(np.array([200_000]))
    sizes = plan.spans[:, 2] - plan.spans[:, 1]
    short = sizes[sizes < 50]
    assert len(short) / len(sizes) == pytest.approx(0.1 * 48 / 49, abs=0.02)
    assert short.min() >= 2 and short.mean() == pytest.approx(25.5, abs=2)


def test_partners_come_from_another_document():
    documents = corpus(3)
    for (own, _), (other, partner) in cut_all(documents, SentenceSpans(50, partners=True)):
        assert own != other and 0 < len(partner.tokens) <= 100 and partner.sentences[0] == 0
    long_and_short = [*corpus(4, documents=1), *corpus(5, documents=1)]
    long_and_short[0] = TokenizedDocument(np.arange(5000), np.arange(0, 5000, 10))  # more than half of the window
    assert all(
        len(pieces) == 2 and pieces[0][0] != pieces[1][0]
        for pieces in cut_all(long_and_short, SentenceSpans(50, partners=True))
    )
    assert all(len(pieces) == 1 for pieces in cut_all(documents[:1], SentenceSpans(50, partners=True)))


def test_plan_depends_on_lengths_alone_and_skips_empty_documents():
    lengths = np.array([0, 120, 0, 1, 70], np.int32)
    one, two = (SentenceSpans(50, partners=True).plan(lengths) for _ in range(2))
    assert [one.segments(i) for i in range(one.num_sequences)] == [two.segments(i) for i in range(two.num_sequences)]
    assert set(one.spans[:, 0].tolist()) == {1, 3, 4}
    assert SentenceSpans(50).plan(np.array([], np.int32)).num_sequences == 0

"""Whole sentences beside facebookresearch/fairseq, token_block_utils_fast.pyx, sample_break_mode complete and
complete_doc, written here from its algorithm: a sentence stays whole, and begins a block where it no longer fits."""

import numpy as np
import pytest

from data_pipeline.shards.text import TokenizedDocument
from data_pipeline.stream.whole_sentences import WholeSentences

FULL, DOC = (1, 1), (0, 2)  # tokens for each sequence, and for each document's part in it


def corpus(seed, longest_sentence=12, documents=40):
    """Documents of random sentences, some without text; no token occurs twice."""
    rng, found, first = np.random.default_rng(seed), [], 0
    for number in range(documents):
        lengths = rng.integers(1, longest_sentence, rng.integers(1, 30)) if number % 7 else np.zeros(0, int)
        stop = first + int(lengths.sum())
        starts = np.cumsum(lengths) - lengths
        found.append(TokenizedDocument(np.arange(first, stop), starts))
        first = stop
    return found


def cut_all(documents, packing):
    lengths = np.array([len(d.tokens) for d in documents])
    firsts = np.cumsum(lengths) - lengths
    starts = np.concatenate([d.sentences + first for d, first in zip(documents, firsts, strict=True)])
    plan = packing.plan(lengths, lambda: starts)
    return [
        [(p.document, packing.cut(documents[p.document], p).tolist()) for p in plan.segments(i)]
        for i in range(plan.num_sequences)
    ]


def published_blocks(documents, length, per_sequence, per_document):
    """-> of each block the numbers of its sentences, counted over all documents."""
    blocks, current, size, previous, number = [], [], per_sequence, None, 0
    for place, document in enumerate(documents):
        for tokens in np.diff([*document.sentences, len(document.tokens)]).tolist():
            more = tokens + per_document * (place != previous or not current)
            if current and size + more > length:
                blocks.append(current)
                current, size, more = [], per_sequence, tokens + per_document
            current.append(number)
            size, previous, number = size + more, place, number + 1
    return [*blocks, current]


@pytest.mark.parametrize("frame", [FULL, DOC])
@pytest.mark.parametrize("longest_sentence", [2, 12, 40])
def test_sequences_are_the_published_blocks(frame, longest_sentence):
    documents = corpus(1, longest_sentence)
    sequences = cut_all(documents, WholeSentences(50, *frame))
    starts = np.concatenate([document.tokens[document.sentences] for document in documents])
    found = [[i for _, tokens in parts for i in np.flatnonzero(np.isin(starts, tokens))] for parts in sequences]
    assert found == published_blocks(documents, 50, *frame)
    tokens = np.concatenate([tokens for parts in sequences for _, tokens in parts])
    assert np.array_equal(tokens, np.arange(len(tokens))) and len(tokens) == sum(len(d.tokens) for d in documents)
    sizes = [frame[0] + sum(len(tokens) + frame[1] for _, tokens in parts) for parts in sequences]
    assert max(sizes) <= 50 and all(len({d for d, _ in parts}) == len(parts) for parts in sequences)


@pytest.mark.parametrize("frame", [FULL, DOC])
def test_a_sentence_that_fits_nowhere_is_cut(frame):
    documents = corpus(2, longest_sentence=200)
    sequences = cut_all(documents, WholeSentences(20, *frame))
    tokens = np.concatenate([tokens for parts in sequences for _, tokens in parts])
    assert np.array_equal(tokens, np.arange(sum(len(d.tokens) for d in documents)))
    sizes = [frame[0] + sum(len(tokens) + frame[1] for _, tokens in parts) for parts in sequences]
    assert max(sizes) == 20


def test_nothing_to_pack():
    empty = TokenizedDocument(np.arange(0), np.arange(0))
    assert cut_all([empty], WholeSentences(20, *FULL)) == []

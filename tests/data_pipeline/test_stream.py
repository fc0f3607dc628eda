from collections import Counter

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.stream.packing import Concatenation
from data_pipeline.stream.stream import Position, Stream

PACKING = Concatenation(33, 32, before=(1,), after=(2,))


@pytest.fixture(scope="module")
def reader(corpus):
    return TextReader(load_manifest(corpus), "train")


def stream(reader, seed=1, **options):
    return Stream(reader, PACKING, seed, window_blocks=4, window_shards=2, **options)


def epoch_length(s, epoch=0):
    return sum(s.window(epoch, w).plan.num_sequences for w in range(s.windows_per_epoch))


def test_an_epoch_holds_every_document_once(reader):
    s = stream(reader)
    documents = Counter()
    for w in range(s.windows_per_epoch):
        window = s.window(0, w)
        documents.update((window.blocks[b], int(d)) for b, d in window.documents)
    expected = sum(len(reader.document_lengths(i, b)) for i, n in enumerate(reader.blocks_per_shard) for b in range(n))
    assert len(documents) == expected and set(documents.values()) == {1}


def test_walking_and_seeking_agree(reader):
    """The sequence with number n is the same whether one walks to it or jumps."""
    s, position, walked = stream(reader), Position(), []
    length = epoch_length(s)
    for sequence, after in s.sequences(position):
        walked.append((position, sequence))
        position = after
        if position.number == length + 20:
            break
    assert walked[-1][0].epoch == 1
    for number in (0, 1, 17, length - 1, length, length + 19):
        there = stream(reader).advance(Position(), number)
        assert there.number == number
        for a, b in zip(stream(reader).sequence(there), walked[number][1], strict=True):
            assert np.array_equal(a, b)
        assert s.from_json(s.to_json(there)) == there


@pytest.mark.parametrize(
    "values",
    [{}, {"epoch": 0}, {"epoch": 0, "window": 0, "sequence": 0, "number": "7"}, {"source": {"epoch": 0}, "number": 0}],
)
def test_a_state_that_is_no_position_is_refused(reader, values):
    with pytest.raises(InputError, match="not a position"):
        stream(reader).from_json(values)


def test_epochs_and_seeds_differ(reader):
    def first(s, epoch):
        return np.concatenate(s.sequence(Position(epoch=epoch))).tolist()

    one = first(stream(reader), 0)
    assert first(stream(reader), 0) == one
    assert first(stream(reader), 1) != one
    assert first(stream(reader, seed=2), 0) != one


def test_a_window_opens_a_bounded_number_of_shards(reader):
    s = stream(reader)
    assert len(reader.blocks_per_shard) > 4
    assert all(len({shard for shard, _ in s.window(0, w).blocks}) <= 4 for w in range(s.windows_per_epoch))

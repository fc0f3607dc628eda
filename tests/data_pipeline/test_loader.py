import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.loader import Fault, MicroBatch, RankSlice, _PackedBatch, load, micro_batches, sample_hash
from data_pipeline.shards.manifest import load_manifest
from data_pipeline.shards.text import TextReader
from data_pipeline.stream.sequence_source import SequenceSource
from data_pipeline.stream.stream import Position, Stream
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.text.causal_lm import CausalLM, CausalLMConfig

STEPS = 6


@pytest.fixture(scope="module")
def maker(corpus):
    spec = SampleSpec(seq_len=32, tokenizer=Tokenizer.load(corpus / "tokenizer"))
    return CausalLM(CausalLMConfig("causal_lm"), spec)


def stream(corpus, maker):
    return Stream(TextReader(load_manifest(corpus), "train"), maker.packing(), 1, window_blocks=2)


def batches(corpus, maker, ranks, micro, workers=1, position=None, steps=STEPS):
    """[{sample contents}] and [hash] of each global batch, and the position after the last."""
    contents, hashes = [[] for _ in range(steps)], [0] * steps
    for rank, worker in itertools.product(range(ranks), range(workers)):
        share = RankSlice(12, micro, rank, ranks)
        feed = micro_batches(stream(corpus, maker), maker, share, position or Position(), worker, workers)
        turns = [turn for turn in range(steps * share.micro_batches) if turn % workers == worker]
        for turn, (batch, position_after) in zip(turns, feed, strict=False):
            step, after = turn // share.micro_batches, position_after
            contents[step] += [row.tobytes() for row in batch.arrays["tokens"]]
            hashes[step] = (hashes[step] + batch.content_hash) % 2**64
    return [sorted(c) for c in contents], hashes, after


@pytest.mark.parametrize("ranks, micro, workers", [(1, 4, 1), (1, 1, 3), (2, 3, 1), (3, 2, 2), (4, 3, 1), (6, 1, 2)])
def test_a_global_batch_is_the_same_in_any_layout(corpus, maker, ranks, micro, workers):
    assert batches(corpus, maker, ranks, micro, workers)[:2] == batches(corpus, maker, 1, 12)[:2]


def test_resume_continues_exactly(corpus, maker):
    contents, hashes, _ = batches(corpus, maker, 1, 12)
    _, _, position = batches(corpus, maker, 1, 12, steps=4)
    assert batches(corpus, maker, 2, 3, position=position, steps=2)[:2] == (contents[4:], hashes[4:])


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_in_processes_gives_the_same(corpus, maker, workers):
    feed = load(stream(corpus, maker), maker, RankSlice(12, 3), Position(), workers)
    plain = micro_batches(stream(corpus, maker), maker, RankSlice(12, 3), Position())
    for (batch, after), (expected, position) in itertools.islice(zip(feed, plain, strict=False), 9):
        assert after == position and batch.content_hash == expected.content_hash
        assert np.array_equal(batch.arrays["labels"].numpy(), expected.arrays["labels"])


def test_arrays_of_any_type_and_size_leave_a_worker_in_one_tensor():
    arrays = {
        "a": np.array([[True, False, True]]),
        "b": np.arange(6).reshape(2, 3)[:, ::2],
        "c": np.float32([1.5]),
        "d": np.zeros((2, 0), np.int64),
        "e": np.uint8([1, 2, 255]),
    }
    out = _PackedBatch.of(MicroBatch(arrays, {}, 2, 3, 4)).unpacked()
    assert (out.samples, out.tokens, out.content_hash) == (2, 3, 4)
    for name, array in arrays.items():
        assert out.arrays[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(out.arrays[name].numpy(), array)


def test_any_sequence_source_will_do(maker):
    """The loader knows the contract only: here a state is how many numbers were counted."""

    class Counting:
        seed = 1

        def start(self):
            return "0"

        def to_json(self, state):
            return {"count": state}

        def from_json(self, values):
            return values["count"]

        def number(self, state):
            return int(state)

        def advance(self, state, count):
            return str(int(state) + count)

        def sequence(self, state):
            return [np.arange(int(state) % 5 + 4)]

    source: SequenceSource[str] = Counting()
    feed = load(source, maker, RankSlice(4, 2), source.start(), num_workers=2)
    seen = [next(feed) for _ in range(4)]
    assert [state for _, state in seen] == ["4", "4", "8", "8"]
    assert [batch.tokens for batch, _ in seen] == [n % 5 + m % 5 + 6 for n, m in ((0, 1), (2, 3), (4, 5), (6, 7))]


def test_a_fault_in_a_worker_arrives_as_an_item(corpus, maker):
    class Broken(type(maker)):
        def corrupt(self, segments, rng):
            raise InputError("shard 3 is damaged")

    spec = SampleSpec(seq_len=32, tokenizer=Tokenizer.load(corpus / "tokenizer"))
    broken = Broken(maker.config, spec)
    item, _ = next(load(stream(corpus, broken), broken, RankSlice(4, 4), Position(), 1))
    assert item == Fault("shard 3 is damaged")


def test_a_worker_that_is_killed_is_a_fault_that_a_restart_mends(corpus, maker):
    """And not an exception wherever the main thread happens to be."""
    feed = load(stream(corpus, maker), maker, RankSlice(12, 3), Position(), num_workers=2)
    next(feed)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    last = list(feed)[-1][0]
    assert isinstance(last, Fault) and last.is_lost and "killed, or out of memory" in last.message


def test_the_hash_sees_every_value():
    sample = {"tokens": np.array([1, 2, 3]), "labels": np.array([2, 3, 4])}
    changed = {"tokens": np.array([1, 2, 3]), "labels": np.array([2, 3, 5])}
    swapped = {"tokens": sample["labels"], "labels": sample["tokens"]}
    assert len({sample_hash(s) for s in (sample, changed, swapped)}) == 3

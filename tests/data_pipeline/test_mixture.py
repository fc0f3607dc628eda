"""Which corpus a sample of a mixture comes from, and where each corpus stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.stream.mixture import Corpus, Mixture
from data_pipeline.stream.packing import Single
from data_pipeline.stream.shares import Shares, smoothed_shares
from data_pipeline.stream.stream import Stream

SIZES = {"en": 1000, "de": 100, "sw": 10, "yo": 1}


def many() -> dict[str, float]:
    """Forty corpora, the smallest of a share of 6.6e-5."""
    sizes = {f"c{i:02d}": 1.26**i for i in range(40)}
    smallest = min(smoothed_shares(sizes, 1.0).values())
    return smoothed_shares(sizes, np.log(6.6e-5) / np.log(smallest) * 1.0005)


def test_shares_go_by_a_power_of_the_size():
    found = smoothed_shares(SIZES, 0.7)
    assert [round(v, 3) for v in found.values()] == [0.802, 0.16, 0.032, 0.006]
    assert smoothed_shares(SIZES, 1.0)["yo"] == pytest.approx(1 / 1111)


def test_forty_corpora_are_walked_without_gaps_and_never_leave_their_shares():
    found = many()
    shares = Shares(found, seed=1)
    smallest = min(found.values()) / sum(found.values())
    assert smallest < 1e-4 and shares.period == -(-2 * shares.total // min(shares.weights.values()))
    orders = [shares.order(t) for t in range(3)]
    before = dict.fromkeys(shares.names, 0)
    for t, order in enumerate(orders):
        assert shares.counts(t * shares.period) == before
        counts = np.bincount(order, minlength=40)
        assert counts.min() >= 1 and len(order) == shares.period
        before = {name: before[name] + int(counts[i]) for i, name in enumerate(shares.names)}
        for name, count in before.items():
            assert abs(count - (t + 1) * shares.period * shares.weights[name] / shares.total) < 1
    walked = [shares.names[i] for i in np.concatenate(orders)]
    places = dict.fromkeys(shares.names, 0)
    for number in (*range(200), shares.period - 1, shares.period, shares.period + 1, 2 * shares.period + 7):
        assert shares.corpus(number) == walked[number]
    for number, name in enumerate(walked):
        places[name] += 1
        if number % 9973 == 0:
            assert shares.counts(number + 1) == places
    assert (orders[0] != orders[1]).any() and (Shares(found, seed=2).order(0) != orders[0]).any()


def test_a_far_sample_is_found_at_once():
    shares = Shares(many(), seed=1)
    there = 10**12
    counts = shares.counts(there)
    assert sum(counts.values()) == there
    period, place = divmod(there, shares.period)
    name = shares.names[shares.order(period)[place]]
    after = shares.counts(there + 1)
    assert shares.corpus(there) == name and {n: after[n] - counts[n] for n in counts if after[n] != counts[n]} == {
        name: 1
    }
    across = shares.between(there, there + 3 * shares.period)
    assert sum(across.values()) == 3 * shares.period and min(across.values()) >= 1


def test_the_order_in_which_corpora_are_named_does_not_matter():
    turned = dict(reversed(list(SIZES.items())))
    assert (Shares(SIZES, 3).order(0) == Shares(turned, 3).order(0)).all()


class Numbers:
    """A corpus whose documents are numbers from `first` on."""

    def __init__(self, first: int, blocks: int) -> None:
        self.first, self.blocks_per_shard, self.shard_names, self.name = first, [blocks], ["train/a.tar"], f"{first}"

    def document_lengths(self, shard: int, block: int) -> np.ndarray:
        return np.ones(7, np.int32)

    def sentence_starts(self, shard: int, block: int) -> np.ndarray:
        return np.arange(7)

    def read_document(self, shard: int, block: int, document: int) -> Any:
        return self.first + 7 * block + document

    def keep_blocks(self, count: int) -> None: ...


def mixture(seed: int = 1, **shares: float) -> Mixture:
    places = {"en": 0, "de": 1000, "fr": 2000}
    streams = {n: Stream(Numbers(places[n], 9), Single(), seed, window_blocks=3) for n in shares}
    return Mixture({n: Corpus(streams[n], share, n) for n, share in shares.items()}, seed)


def walk(source: Mixture, state: Any, count: int) -> tuple[list[int], Any]:
    found = []
    for _ in range(count):
        (document,) = source.sequence(state)
        found.append(document)
        state = source.advance(state, 1)
    return found, state


def test_each_corpus_is_walked_in_its_own_order():
    source = mixture(en=3, de=1)
    found, state = walk(source, source.start(), 120)
    for name, first in (("en", 0), ("de", 1000)):
        stream, own = source.streams[name], [d for d in found if first <= d < first + 1000]
        alone, position = [], stream.start()
        for _ in own:
            alone += stream.sequence(position)
            position = stream.advance(position, 1)
        assert own == alone and source.drawn(state)[name] == len(own)
    assert source.number(state) == 120 and source.passes(state) == 0
    assert source.passes(source.advance(state, 4096)) > 2


def test_a_state_is_the_same_by_steps_at_once_and_through_json():
    source = mixture(en=3, de=1)
    _, state = walk(source, source.start(), 77)
    assert source.advance(source.start(), 77) == state == source.from_json(source.to_json(state))
    far = source.advance(source.start(), 3000)
    assert source.advance(source.advance(source.start(), 1010), 1990) == far  # over the border of a period
    (origin,) = source.origins(state)
    assert origin.shard in ("en:train/a.tar", "de:train/a.tar")


def test_other_shares_and_corpora_keep_every_count():
    first = mixture(en=3, de=1)
    before, state = walk(first, first.start(), 90)
    second = mixture(en=1, de=1, fr=2)
    moved = second.from_json(first.to_json(state))
    assert (moved.number, moved.begun) == (90, 90) and second.drawn(moved) == {**first.drawn(state), "fr": 0}
    between, state = walk(second, moved, 60)
    assert second.from_json(second.to_json(state)) == state
    third = mixture(de=1, fr=1)
    gone, state = walk(third, third.from_json(second.to_json(state)), 20)
    assert "en" in state.former
    back = third.to_json(state)
    after, state = walk(second, second.from_json(back), 40)
    for name, low in (("en", 0), ("de", 1000), ("fr", 2000)):
        own = [d for d in before + between + gone + after if low <= d < low + 1000]
        stream, position, alone = second.streams[name], second.streams[name].start(), []
        for _ in own:
            alone += stream.sequence(position)
            position = stream.advance(position, 1)
        assert own == alone


def test_what_is_no_state_of_a_mixture_is_refused():
    source = mixture(en=3, de=1)
    good = source.to_json(source.advance(source.start(), 5))
    other = Mixture({n: replace(c, content="x") for n, c in source.corpora.items()}, 1)
    with pytest.raises(InputError, match=r"data\.sources\.(en|de) holds other data"):
        other.from_json(good)
    for bad in (
        {},
        {**good, "format": 2},
        {**good, "begun": 6},
        {**good, "number": -1},
        {**good, "sources": {"en": 1}},
    ):
        with pytest.raises(InputError):
            source.from_json(bad)
    with pytest.raises(InputError, match="position in one corpus"):
        source.from_json({**good, "sources": {"en": {"content": "en", "position": {"epoch": 0}}}})


@pytest.mark.parametrize("tiny", [1e-300, 1e-9, 9e-7])
def test_a_share_that_no_period_could_deal_is_refused_by_name(tiny):
    with pytest.raises(InputError, match=r"data\.sources\.b would have .* less than 1e-06"):
        Shares({"a": 1.0, "b": tiny}, seed=1)
    with pytest.raises(InputError, match=r"data\.sources\.a"):
        Shares({"a": 1.0, "b": 1e308}, seed=1)
    assert Shares({"a": 1.0, "b": 1.1e-6}, seed=1).period < 2_000_000

"""Totals of a step over all ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import pytest

from data_pipeline.common.errors import InputError
from data_pipeline.loader import Fault, MicroBatch
from pretraining.feeds import StepTotals, gather_steps
from pretraining.parallel.launch import Launch
from pretraining.parallel.world import World, start_world
from pretraining.run.signals import StopRequest
from tests.helpers import run_world

HASH = 2**64 - 3


def micro_batch(tokens: int = 5, content_hash: int = HASH) -> MicroBatch:
    return MicroBatch({}, {"loss": tokens, "hits": 1}, 1, tokens, content_hash)


def test_totals_have_names_and_hashes_are_summed_modulo_two_to_the_64() -> None:
    batches = [micro_batch(5), replace(micro_batch(7, 10), target_bytes=3)]
    totals = StepTotals.reduce(start_world(Launch()), ["loss", "hits"], batches, faulty=False, stop=True)
    assert totals == StepTotals(
        {"loss": 12.0, "hits": 2.0}, units=12, target_bytes=3, batch_hash=7, faulty=False, stop=True
    )


def reduce(world: World) -> StepTotals:
    batch = micro_batch(world.mesh.batch_rank + 1, 2**63 + world.mesh.batch_rank)
    return StepTotals.reduce(world, ["loss"], [batch], faulty=world.rank == 1, stop=False)


@pytest.mark.parametrize("tensor_parallel, expected", [(1, (3, 1)), (2, (1, 2**63))])
def test_ranks_that_read_the_same_batch_are_counted_once(tensor_parallel: int, expected: tuple[int, int]) -> None:
    for totals in run_world(2, totals_of, tensor_parallel=tensor_parallel):
        assert totals == (*expected, float(expected[0]), True, False)


def totals_of(world: World) -> tuple[object, ...]:
    totals = reduce(world)
    return totals.units, totals.batch_hash, totals.counts["loss"], totals.faulty, totals.stop


def faulty_step(world: World) -> str:
    item = Fault("no such shard") if world.rank == 1 else micro_batch()
    steps = gather_steps(repeat((item, {})), 2, ["loss", "hits"], world, StopRequest())
    with pytest.raises(InputError) as caught:
        next(steps)
    return str(caught.value)


def test_a_fault_on_one_rank_ends_all_of_them_with_its_message() -> None:
    assert run_world(2, faulty_step) == ["rank 1: no such shard", "no such shard"]


def peaks(world: World) -> tuple[object, ...]:
    totals = StepTotals.reduce(
        world, ["loss"], [micro_batch()], False, False, own_seconds=0.5 + world.rank, own_bytes=2**40 + world.rank
    )
    return totals.rank_seconds, totals.peak_bytes


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_what_each_rank_has_taken_is_known_to_all(tensor_parallel: int) -> None:
    for found in run_world(2, peaks, tensor_parallel=tensor_parallel):
        assert found == ((0.5, 1.5), 2**40 + 1)

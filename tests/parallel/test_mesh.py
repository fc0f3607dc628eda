"""Axes and groups of the grid of ranks, and sums over the parts of tensors that are split along them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from data_pipeline.common.errors import InputError
from pretraining.parallel.host import broadcast_text, host_sum, raise_on_all_ranks, run_on_all_ranks
from pretraining.parallel.launch import Launch
from pretraining.parallel.layout import Layout, TensorLayout
from pretraining.parallel.mesh import Axis, Mesh
from pretraining.parallel.world import World, start_world
from tests.helpers import run_world

DATA, TENSOR = frozenset({Axis.DATA}), frozenset({Axis.TENSOR})


def test_a_job_of_one_process_has_axes_of_one_and_no_group() -> None:
    mesh = start_world(Launch()).mesh
    assert [mesh.size(axis) for axis in Axis] == [1, 1] and [mesh.rank(axis) for axis in Axis] == [0, 0]
    assert mesh.group(Axis.DATA) is mesh.host_group is mesh.gradient_group is None
    assert mesh.batch_ranks == mesh.batch_readers == 1


def places(world: World) -> list[object]:
    mesh = world.mesh
    data, tensor = mesh.group(Axis.DATA), mesh.group(Axis.TENSOR)
    return [
        (mesh.batch_rank, mesh.batch_ranks, mesh.batch_readers, mesh.rank(Axis.TENSOR)),
        None if data is None else dist.get_process_group_ranks(data),
        None if tensor is None else dist.get_process_group_ranks(tensor),
    ]


def test_neighbors_share_a_tensor_parallel_group() -> None:
    assert run_world(4, places, tensor_parallel=2) == [
        [(0, 2, 2, 0), [0, 2], [0, 1]],
        [(0, 2, 2, 1), [1, 3], [0, 1]],
        [(1, 2, 2, 0), [0, 2], [2, 3]],
        [(1, 2, 2, 1), [1, 3], [2, 3]],
    ]


def test_without_tensor_parallelism_all_ranks_are_data_parallel() -> None:
    assert run_world(2, places) == [[(0, 2, 1, 0), [0, 1], None], [(1, 2, 1, 0), [0, 1], None]]


SPLITS = (TENSOR, frozenset(), DATA, DATA | TENSOR, DATA, TENSOR)


def sums(world: World) -> tuple[list[float], list[float]]:
    layout = Layout(tuple(TensorLayout(str(i), (4,), split) for i, split in enumerate(SPLITS)), world.mesh)
    part = 10.0**world.rank
    each = layout.sum_over_parts(torch.full((len(SPLITS),), part))
    lengths = [1, 0, 2, 1, 1, 3]
    flat = layout.sum_over_parts(torch.full((sum(lengths),), part), lengths)
    return each.tolist(), flat.tolist()


def test_each_tensor_is_summed_over_the_axes_that_split_it_in_any_order() -> None:
    """Rank r's part is 10 ** r: the digits of a sum say which ranks it is over."""
    for rank, (each, flat) in enumerate(run_world(4, sums, tensor_parallel=2)):
        own = 10.0**rank
        tensor = 11.0 if rank < 2 else 1100.0
        data = 101.0 if rank % 2 == 0 else 1010.0
        assert each == [tensor, own, data, 1111.0, data, tensor]
        assert flat == [tensor, data, data, 1111.0, data, tensor, tensor, tensor]


def test_nothing_is_reduced_on_one_rank() -> None:
    layout = Layout((TensorLayout("a", (4,), DATA | TENSOR),), Mesh())
    assert layout.sum_over_parts(torch.tensor([3.0])).tolist() == [3.0]


def on_the_host(world: World) -> tuple[list[float], str, list[str]]:
    messages = []
    for bad in ((), (1,), (0, 1)):

        def work(bad: tuple[int, ...] = bad) -> None:
            if world.rank in bad:
                raise InputError(f"fault {world.rank}")

        try:
            run_on_all_ranks(world, work)
        except InputError as error:
            messages.append(str(error))
    return host_sum(world, [world.mesh.batch_rank + 1.0, 2.0**53]), broadcast_text(world, f"of {world.rank}"), messages


def test_host_collectives() -> None:
    """Ranks that read the same batch are counted once; an error is raised on all ranks, with its rank and message."""
    results = run_world(2, on_the_host)
    assert [r[:2] for r in results] == [([3.0, 2.0**54], "of 0")] * 2
    assert [r[2] for r in results] == [["rank 1: fault 1", "fault 0"], ["fault 1", "fault 1"]]
    assert run_world(2, on_the_host, tensor_parallel=2)[0][0] == [1.0, 2.0**53]


def test_alone_a_failure_is_raised_as_it_is() -> None:
    world = start_world(Launch())
    raise_on_all_ranks(world, None)
    with pytest.raises(InputError, match=r"^as it is$"):
        raise_on_all_ranks(world, "as it is")

"""Collectives of all ranks over numbers and texts that lie on the host; they never wait for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from data_pipeline.common.errors import InputError
from pretraining.parallel.world import World

T = TypeVar("T")


class Ranks(Protocol):
    """The ranks of a job, before it has process groups (Meeting) or with them (World)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def is_main(self) -> bool: ...
    def gather_texts(self, text: str | None) -> list[str | None]:
        """Every rank's text, by rank, on every rank."""
        ...


def host_sum(world: World, values: Sequence[float]) -> list[float]:
    """The sums over the ranks that read different batches, in a collective of all ranks, in fp64.

    Ranks that read the same batch hold the same numbers, which are counted once: what only one of them knows (a
    signal, a fault) counts a fraction, and more than 0 means that somebody knows it.
    """
    if world.mesh.host_group is None:
        return list(values)
    import torch
    import torch.distributed as dist

    vector = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(vector, group=world.mesh.host_group)
    return (vector / world.mesh.batch_readers).tolist()


def broadcast_text(ranks: Ranks, text: str) -> str:
    """Rank 0's text, on every rank."""
    first = ranks.gather_texts(text if ranks.is_main else None)[0]
    assert first is not None
    return first


def run_on_all_ranks(ranks: Ranks, work: Callable[[], T]) -> T:
    """Does `work` on every rank -> what it returned on this one. An InputError on one of them is raised on all, so that
    they end alike and none waits for one that has left."""
    failure, value = None, None
    try:
        value = work()
    except InputError as error:
        failure = str(error)
    raise_on_all_ranks(ranks, failure)
    return value  # type: ignore[return-value]


def raise_on_all_ranks(ranks: Ranks, failure: str | None) -> None:
    """Raises an InputError with this rank's message or, where it has none, with the first one of the others. A
    collective of all ranks.

    Messages, not exceptions: a frame that holds the exception that passes through it is a circle of references, and
    keeps loaders and their workers alive.
    """
    failures = ranks.gather_texts(failure)
    if failure is not None:
        raise InputError(failure)
    for rank, message in enumerate(failures):
        if message is not None:
            raise InputError(f"rank {rank}: {message}")

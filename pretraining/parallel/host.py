"""Collectives of all ranks over numbers and texts that lie on the host; they never wait for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.common.errors import InputError
from pretraining.parallel.world import World


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


def broadcast_text(world: World, text: str) -> str:
    """Rank 0's text, on every rank."""
    if world.mesh.host_group is None:
        return text
    first = _gather_texts(world, text if world.is_main else None)[0]
    assert first is not None
    return first


def run_on_all_ranks(world: World, work: Callable[[], None]) -> None:
    """Does `work` on every rank. An InputError on one of them is raised on all, so that they end alike."""
    failure = None
    try:
        work()
    except InputError as error:
        failure = str(error)
    raise_on_all_ranks(world, failure)


def raise_on_all_ranks(world: World, failure: str | None) -> None:
    """Raises an InputError with this rank's message or, where it has none, with the first one of the others. A
    collective of all ranks.

    Messages, not exceptions: a frame that holds the exception that passes through it is a circle of references, and
    keeps loaders and their workers alive.
    """
    failures = _gather_texts(world, failure)
    if failure is not None:
        raise InputError(failure)
    for rank, message in enumerate(failures):
        if message is not None:
            raise InputError(f"rank {rank}: {message}")


def _gather_texts(world: World, text: str | None) -> list[str | None]:
    """Every rank's text, as bytes in tensors: torch's collectives of objects unpickle what any peer sends."""
    if world.mesh.host_group is None:
        return [text]
    import torch
    import torch.distributed as dist

    data = b"" if text is None else text.encode()
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(lengths, torch.tensor([-1 if text is None else len(data)]), group=world.mesh.host_group)
    sizes = [int(length) for length in lengths]
    buffers = [torch.zeros(max(1, *sizes), dtype=torch.uint8) for _ in sizes]
    own = torch.frombuffer(bytearray(data.ljust(len(buffers[0]), b"\0")), dtype=torch.uint8)
    dist.all_gather(buffers, own, group=world.mesh.host_group)
    return [
        None if size < 0 else bytes(buffer[:size].tolist()).decode()
        for size, buffer in zip(sizes, buffers, strict=True)
    ]

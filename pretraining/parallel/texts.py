"""Texts between the ranks of a process group, as bytes in tensors.

torch's collectives of objects unpickle what any peer sends, and so execute it: none of them is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

LONGEST_TEXT = 1 << 31  # bytes: no rank has so much to say


def gather_texts(text: str | None, group: ProcessGroup) -> list[str | None]:
    """Every rank's text, by rank; None where a rank has none. group: one that takes tensors of the host."""
    import torch
    import torch.distributed as dist

    data = b"" if text is None else text.encode(errors="surrogateescape")
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(lengths, torch.tensor([-1 if text is None else len(data)]), group=group)
    sizes = [int(length) for length in lengths]
    _checked(max(sizes))
    buffers = [torch.zeros(max(1, *sizes), dtype=torch.uint8) for _ in sizes]
    own = torch.frombuffer(bytearray(data.ljust(len(buffers[0]), b"\0")), dtype=torch.uint8)
    dist.all_gather(buffers, own, group=group)
    return [None if size < 0 else _text(buffer, size) for size, buffer in zip(sizes, buffers, strict=True)]


def broadcast_text(text: str | None, group: ProcessGroup) -> str:
    """The first rank's text, on every rank of the group. group: one that takes tensors of the host."""
    import torch
    import torch.distributed as dist

    first = dist.get_global_rank(group, 0)
    data = b"" if text is None else text.encode(errors="surrogateescape")
    length = torch.tensor([len(data)])
    dist.broadcast(length, first, group=group)
    size = _checked(int(length))
    buffer = torch.frombuffer(bytearray(data.ljust(max(1, size), b"\0")), dtype=torch.uint8)
    dist.broadcast(buffer[: max(1, size)], first, group=group)
    return _text(buffer, size)


def merge_texts(text: str, merge: Callable[[str, str], str], group: ProcessGroup, order: Sequence[int]) -> str | None:
    """Every rank's text, merged two by two along a tree: on the first rank of `order` the whole, elsewhere None. What
    any rank does grows with the logarithm of the ranks alone.

    order: the group's ranks. merge: of two texts, of which the first one's ranks come earlier there; it must not raise.
    """
    place, size, step = order.index(group.rank()), len(order), 1
    while step < size:
        if place % (2 * step):
            _send(text, order[place - step], group)
            return None
        if place + step < size:
            text = merge(text, _receive(order[place + step], group))
        step *= 2
    return text


def _send(text: str, rank: int, group: ProcessGroup) -> None:
    import torch
    import torch.distributed as dist

    data = torch.frombuffer(bytearray(text.encode(errors="surrogateescape")), dtype=torch.uint8)
    dist.send(torch.tensor([len(data)]), group=group, group_dst=rank)
    dist.send(data, group=group, group_dst=rank)


def _receive(rank: int, group: ProcessGroup) -> str:
    import torch
    import torch.distributed as dist

    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, group=group, group_src=rank)
    buffer = torch.zeros(_checked(int(length)), dtype=torch.uint8)
    dist.recv(buffer, group=group, group_src=rank)
    return _text(buffer, len(buffer))


def _checked(size: int) -> int:
    if size > LONGEST_TEXT:
        raise RuntimeError(f"a rank announced a text of {size} bytes: it is none of this program")
    return size


def _text(buffer: Tensor, size: int) -> str:
    return buffer[:size].numpy().tobytes().decode(errors="surrogateescape")

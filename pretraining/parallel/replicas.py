"""Whether what all ranks should hold alike is alike, bit for bit: one pass over the tensors and one reduction of a
number for each, on their device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pretraining.parallel.marks import split_dim
from pretraining.parallel.mesh import Axis, Mesh

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

CHUNK, GPU_CHUNK = 1 << 16, 1 << 24  # elements hashed at a time: their products stay in a processor's cache


def unequal_replicas(tensors: Mapping[str, Tensor], mesh: Mesh) -> dict[str, float]:
    """Tensors whose copies are not the same, each with how far these lie apart: the largest difference over the largest
    value. Over the data-parallel ranks all are copies, over the tensor-parallel ranks those that are not split. What
    ZeRO 3 has emptied is equal. A collective of all ranks."""
    found: dict[str, float] = {}
    for axis in Axis:
        if mesh.size(axis) > 1 and tensors:
            group = mesh.group(axis)
            assert group is not None, "an axis of several ranks has a group"
            copies = {n: t for n, t in tensors.items() if axis is Axis.DATA or split_dim(t) is None}
            for name in _unequal(copies, group):
                found[name] = max(found.get(name, 0.0), _distance(copies[name], group))
    return found


def _unequal(tensors: Mapping[str, Tensor], group: ProcessGroup) -> list[str]:
    import torch

    hashes = torch.stack([bits_hash(tensor) for tensor in tensors.values()])
    return [name for name, differs in zip(tensors, _differs(hashes, group).tolist(), strict=True) if differs]


def _distance(tensor: Tensor, group: ProcessGroup) -> float:
    import torch
    import torch.distributed as dist

    both = torch.stack([tensor.detach(), -tensor.detach()]).float()
    dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    apart = float((both[0] + both[1]).max() / both.abs().max())
    return apart if apart == apart else math.inf  # a NaN is as far away as can be


def bits_hash(tensor: Tensor) -> Tensor:
    """-> int64 scalar, of the bits of all elements and their places; modulo 2^32 and more."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    wide = torch.int64 if integers is torch.int64 else torch.int32  # which processors multiply many at a time
    bits = tensor.detach().reshape(-1).view(integers)
    size = CHUNK if tensor.device.type == "cpu" else GPU_CHUNK
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    # odd: an odd factor multiplies no bit away
    places = torch.arange(min(size, len(bits)), dtype=wide, device=tensor.device) * 2 + 1
    for chunk in bits.split(size):
        total = total * 1_000_003 + (chunk.to(wide) * places[: len(chunk)]).sum(dtype=torch.int64)
    return total


def _differs(hashes: Tensor, group: ProcessGroup) -> Tensor:
    """[tensors] -> [tensors], where the ranks' hashes are not all the same."""
    import torch
    import torch.distributed as dist

    both = torch.cat([hashes, ~hashes])  # ~ turns the order around: one reduction has maximum and minimum
    dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    largest, inverted_smallest = both.chunk(2)
    return largest != ~inverted_smallest

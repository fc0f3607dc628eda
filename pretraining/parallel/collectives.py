"""Collectives with a gradient, on any device: what tensor- and sequence-parallel layers do to activations.

Each pair is conjugate: the gradient of one is the other (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022,
section 4.2.2). Named as megatron-core's functions of tensor_parallel/mappings.py, which need CUDA. Sequences are split
along dimension 1 of [batch, length, hidden].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup


def _sum(x: Tensor, group: ProcessGroup) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


def _gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """[batch, length / ranks, hidden] -> [batch, length, hidden]."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=1)


def _slice(x: Tensor, group: ProcessGroup) -> Tensor:
    """[batch, length, hidden] -> this rank's [batch, length / ranks, hidden]."""
    assert x.shape[1] % group.size() == 0, f"{x.shape[1]} positions are not divisible by {group.size()} ranks"
    return x.chunk(group.size(), dim=1)[group.rank()].contiguous()


def _sum_and_slice(x: Tensor, group: ProcessGroup) -> Tensor:
    assert x.shape[1] % group.size() == 0, f"{x.shape[1]} positions are not divisible by {group.size()} ranks"
    out = torch.empty_like(x[:, : x.shape[1] // group.size()].movedim(1, 0), memory_format=torch.contiguous_format)
    dist.reduce_scatter_tensor(out, x.movedim(1, 0).contiguous(), group=group)
    return out.movedim(0, 1)


class _Context(Protocol):
    """What forward leaves for backward."""

    group: ProcessGroup


class _Collective(Function):
    """`forward_of` and `backward_of` are set by the subclasses."""

    forward_of: Callable[[Tensor, ProcessGroup], Tensor]
    backward_of: Callable[[Tensor, ProcessGroup], Tensor]

    @classmethod
    def forward(cls, ctx: _Context, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return cls.forward_of(x, group)

    @classmethod
    def backward(cls, ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return cls.backward_of(grad, ctx.group), None


def _same(x: Tensor, group: ProcessGroup) -> Tensor:
    return x.view_as(x)


class CopyToTensorRegion(_Collective):
    """Into a region where each rank works with its part of the weights."""

    forward_of, backward_of = staticmethod(_same), staticmethod(_sum)


class ReduceFromTensorRegion(_Collective):
    """Out of it: the ranks' partial results are summed."""

    forward_of, backward_of = staticmethod(_sum), staticmethod(_same)


class GatherFromSequenceRegion(_Collective):
    """As CopyToTensorRegion, from activations that are split along the sequence."""

    forward_of, backward_of = staticmethod(_gather), staticmethod(_sum_and_slice)


class ReduceScatterToSequenceRegion(_Collective):
    """As ReduceFromTensorRegion, to activations that are split along the sequence."""

    forward_of, backward_of = staticmethod(_sum_and_slice), staticmethod(_gather)


class ScatterToSequenceRegion(_Collective):
    """From activations that every rank has to those split along the sequence."""

    forward_of, backward_of = staticmethod(_slice), staticmethod(_gather)


class JoinSequenceRegion(_Collective):
    """Back again, where every rank goes on with the same computation."""

    forward_of, backward_of = staticmethod(_gather), staticmethod(_slice)

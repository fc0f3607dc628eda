"""Over which ranks the tensors are split that an optimizer updates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pretraining.parallel.fragments import Shape
from pretraining.parallel.mesh import Axis, Mesh

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorLayout:
    """A tensor by its name and global shape. split_over: along these axes a rank holds a part of it, or nothing;
    along the others all hold the same. padded_rows: so many of the last ones are always 0, and no part of the tensor
    that is published: statistics of it are without them."""

    name: str
    shape: Shape
    split_over: frozenset[Axis] = frozenset()
    padded_rows: int = 0

    @property
    def published_shape(self) -> Shape:
        return (self.shape[0] - self.padded_rows, *self.shape[1:]) if self.padded_rows else self.shape


@dataclass(frozen=True)
class Layout:
    """All tensors that an optimizer updates, in an order that is the same on every rank.

    Tensors that are split alike are best kept side by side: each run of them is one reduction.
    """

    tensors: tuple[TensorLayout, ...] = ()
    mesh: Mesh = field(default_factory=Mesh)

    def sum_over_parts(self, statistics: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """statistics: [tensors, ...], this rank's part of a sum over each whole tensor -> the sums, in place.

        lengths: statistics is a flat vector instead, in which each tensor has so many elements.
        Along an axis that a tensor is not split over, every rank has the same part, and it is counted once.
        """
        import torch.distributed as dist

        begins = [0, *itertools.accumulate(lengths or [1] * len(self.tensors))]
        for axis, first, stop in self._runs():
            dist.all_reduce(statistics[begins[first] : begins[stop]], group=self.mesh.group(axis))
        return statistics

    def agreed(self, norm: Tensor) -> Tensor:
        """norm: of all gradients, scalar -> the largest of the tensor-parallel ranks', inf where one is not finite.

        Each has computed it, in part from tensors that all of them hold. Should one bit of these differ, one rank would
        skip a step, or clip, and another not, and replicas would part for good.
        """
        import torch
        import torch.distributed as dist

        if self.mesh.size(Axis.TENSOR) == 1:
            return norm
        # NaN has no place in an order: it travels as a flag.
        both = torch.stack([norm.nan_to_num(0.0, 0.0, 0.0), (~norm.isfinite()).to(norm.dtype)])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.mesh.group(Axis.TENSOR))
        return torch.where(both[1] > 0, torch.inf, both[0])

    def _runs(self) -> Iterator[tuple[Axis, int, int]]:
        """(axis, first, stop): tensors [first, stop) are split over it, and it has more ranks than one."""
        for axis in Axis:
            if self.mesh.size(axis) == 1:
                continue
            first = 0
            for is_split, run in itertools.groupby(axis in tensor.split_over for tensor in self.tensors):
                stop = first + len(list(run))
                if is_split:
                    yield axis, first, stop
                first = stop

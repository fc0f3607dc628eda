"""The grid of ranks: axes with names, and groups that say what they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Axis(StrEnum):
    """What ranks along an axis share out. A pipeline, a context and an expert axis will stand here as well."""

    DATA = "data"  # the micro-batches of a step
    TENSOR = "tensor"  # the work on one micro-batch, layer by layer


@dataclass(frozen=True)
class Mesh:
    """This rank's place on the grid; the default is that of a job of one process.

    sizes, ranks: of each axis; an axis that is not named has size 1. groups: by the axes that they run along.
    host_group, save_group: all ranks, over gloo, see `host_group` below.
    """

    sizes: Mapping[Axis, int] = field(default_factory=dict)
    ranks: Mapping[Axis, int] = field(default_factory=dict)
    groups: Mapping[frozenset[Axis], ProcessGroup] = field(default_factory=dict)
    host_group: ProcessGroup | None = None  # reduces numbers that lie on the host, without touching the device
    save_group: ProcessGroup | None = None  # for the thread that writes checkpoints: collectives must not mix

    def size(self, *axes: Axis) -> int:
        """How many ranks lie along these axes."""
        return math.prod(self.sizes.get(axis, 1) for axis in axes)

    def rank(self, axis: Axis) -> int:
        return self.ranks.get(axis, 0)

    def place(self, *axes: Axis) -> int:
        """This rank's number among those along these axes, of `size(*axes)`."""
        place = 0
        for axis in Axis:
            if axis in axes:
                place = place * self.size(axis) + self.rank(axis)
        return place

    def group(self, *axes: Axis) -> ProcessGroup | None:
        """The ranks that differ from this one along these axes alone. None where there is only this one; with
        tensor parallelism there may be a group of one."""
        used = frozenset(axis for axis in axes if self.size(axis) > 1)
        return self.groups.get(used or frozenset(axes))

    def along_data(self) -> list[int]:
        """All ranks, those that share their place on the other axes side by side: parts of a tensor that are dealt over
        the data-parallel ranks follow each other here."""
        return [
            data * self.size(Axis.TENSOR) + tensor  # as world._make_mesh numbers them
            for tensor in range(self.size(Axis.TENSOR))
            for data in range(self.size(Axis.DATA))
        ]

    # What the axes are used for. A new axis is added to these, and their users go on.

    @property
    def batch_rank(self) -> int:
        """Which micro-batches this rank takes: those of its number, of `batch_ranks`."""
        return self.rank(Axis.DATA)

    @property
    def batch_ranks(self) -> int:
        """Among how many the micro-batches of a step are dealt."""
        return self.size(Axis.DATA)

    @property
    def batch_readers(self) -> int:
        """How many ranks read the same micro-batches, and so hold the same numbers about them."""
        return self.size(Axis.TENSOR)

    @property
    def gradient_group(self) -> ProcessGroup | None:
        """Over whom gradients, and sums of the loss, are summed."""
        return self.group(Axis.DATA)

    @property
    def gradient_ranks(self) -> int:
        """How many they are."""
        return self.size(Axis.DATA)

    @property
    def shard_group(self) -> ProcessGroup | None:
        """Among whom parts of tensors are dealt (ZeRO) or whole tensors (shard_optimizer)."""
        return self.group(Axis.DATA)

    @property
    def shard_rank(self) -> int:
        """This rank's number among them."""
        return self.rank(Axis.DATA)

    @property
    def shard_ranks(self) -> int:
        """How many they are."""
        return self.size(Axis.DATA)

"""Where each fragment of a tensor lives: the language that engines, optimizers and checkpoints share.

A tensor has a global shape. Tensor parallelism gives a rank a box of it; ZeRO gives a rank a flat range of that
box. An unsharded tensor is one fragment: the whole box, the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pretraining.parallel.mesh import Axis

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A rectangle of a tensor: where it begins and how far it goes, per dimension."""

    offset: Shape
    size: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def intersect(self, other: Box) -> Box | None:
        begin = tuple(map(max, self.offset, other.offset))
        end = tuple(min(a + m, b + n) for a, m, b, n in zip(*self, *other, strict=True))
        if any(e <= b for b, e in zip(begin, end, strict=True)):
            return None
        return Box(begin, tuple(e - b for b, e in zip(begin, end, strict=True)))

    def slices_of(self, outer: Box) -> tuple[slice, ...]:
        """This box as slices of a tensor that holds `outer`."""
        return tuple(slice(b - o, b - o + n) for b, o, n in zip(self.offset, outer.offset, self.size, strict=True))


@dataclass(frozen=True)
class Fragment:
    """Elements [start, stop) of `box`, laid flat in row-major order, of the tensor `name` with the global `shape`.

    copied_over: the ranks along these axes hold the very same; those along the others do not. part: where this is a
    statistic of a whole tensor, the part of that tensor for whose sake this rank has it, as all do that hold a part.
    Both say which rank writes it into a checkpoint (pretraining.parallel.copies), and nothing about its place.
    """

    name: str
    shape: Shape
    box: Box
    start: int
    stop: int
    copied_over: frozenset[Axis] = field(default=frozenset(), compare=False)
    part: Fragment | None = field(default=None, compare=False)

    @classmethod
    def whole(cls, name: str, shape: Shape) -> Fragment:
        shape = tuple(shape)
        return cls(name, shape, Box((0,) * len(shape), shape), 0, math.prod(shape))

    @property
    def is_box(self) -> bool:
        return self.start == 0 and self.stop == self.box.numel

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def renamed(self, name: str) -> Fragment:
        return replace(self, name=name)

    def boxes(self) -> Iterator[tuple[Box, int]]:
        """The boxes that this range consists of, each with where it begins within the fragment."""
        for offset, size, begin in _range_boxes(self.box.size, self.start, self.stop):
            placed = tuple(a + b for a, b in zip(offset, self.box.offset, strict=True))
            yield Box(placed, size), begin - self.start


def _range_boxes(shape: Shape, start: int, stop: int) -> Iterator[tuple[Shape, Shape, int]]:
    """(offset, size, flat begin) of the boxes that make up [start, stop) of a row-major tensor of this shape."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,), start) if shape else ((), (), 0)
        return
    inner = math.prod(shape[1:])
    row, last = start // inner, (stop - 1) // inner
    if start % inner or (row == last and stop % inner):  # a first row that is not whole
        end = min(stop, (row + 1) * inner)
        for offset, size, begin in _range_boxes(shape[1:], start - row * inner, end - row * inner):
            yield (row, *offset), (1, *size), begin + row * inner
        yield from _range_boxes(shape, end, stop)
        return
    rows = stop // inner - row
    if rows:
        yield (row, *(0,) * (len(shape) - 1)), (rows, *shape[1:]), start
        yield from _range_boxes(shape, (row + rows) * inner, stop)

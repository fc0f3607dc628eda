"""Which parts of a checkpoint's manifest hold a tensor that is cut over the ranks, in a form that does not grow with
their number.

Each rank writes a part, the list of its own boxes. ZeRO cuts a tensor into flat ranges of one length, rank after rank:
so many parts in a row are one line of the manifest, from which follows what each of them holds. A rank that loads finds
the parts that it needs by arithmetic, and reads no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic

from pretraining.parallel.fragments import Box, Fragment

Count = Annotated[int, pydantic.Field(strict=True, ge=0, lt=1 << 60)]
Positive = Annotated[int, pydantic.Field(strict=True, ge=1, lt=1 << 60)]
Json = dict[str, Any]


@dataclass
class Pieces:
    """Parts [part, part + count), of which the i-th lists `length` elements from start + i x length on of the box, laid
    flat; the last one ends where the box does."""

    offset: list[Count]
    size: list[Count]
    start: Count
    length: Positive
    part: Count
    count: Positive = 1

    @classmethod
    def of(cls, fragment: Fragment) -> Pieces:
        """What one rank holds, whose part is the first."""
        return cls(list(fragment.box.offset), list(fragment.box.size), fragment.start, fragment.numel, 0)

    @property
    def box(self) -> Box:
        return Box(tuple(self.offset), tuple(self.size))

    @property
    def parts(self) -> range:
        return range(self.part, self.part + self.count)

    @property
    def stop(self) -> int:
        return min(self.start + self.count * self.length, self.box.numel)

    def boxes(self, part: int) -> Iterator[Box]:
        """What this part holds of it."""
        start = self.start + (part - self.part) * self.length
        stop = min(start + self.length, self.stop)
        for box, _ in Fragment("", self.box.size, self.box, start, stop).boxes():
            yield box

    def parts_of(self, box: Box) -> range:
        """The parts that hold elements of `box`; some of them may hold none, where it crosses the rows."""
        common = box.intersect(self.box)
        if common is None:
            return range(0)
        first, last = (_flat(corner, self.box) for corner in _corners(common))
        begin = max(0, (first - self.start) // self.length)
        end = min(self.count, (last - self.start) // self.length + 1)
        return self.parts[begin : max(begin, end)]

    def takes(self, other: Pieces) -> bool:
        """Whether `other` goes on where this ends, so that both are one line."""
        follows = (
            self.offset == other.offset
            and self.size == other.size
            and self.part + self.count == other.part
            and self.start + self.count * self.length == other.start
        )
        is_last = other.count == 1 and other.length < self.length and other.stop == self.box.numel
        return follows and (other.length == self.length or is_last)


def joined(mine: list[Json], theirs: list[Json], parts: int) -> list[Json]:
    """The pieces of a tensor as two groups of ranks hold them; the first ones are of `parts` parts."""
    later = [{**pieces, "part": pieces["part"] + parts} for pieces in theirs]
    if mine and later and Pieces(**mine[-1]).takes(Pieces(**later[0])):
        first = later.pop(0)
        mine = [*mine[:-1], {**mine[-1], "count": mine[-1]["count"] + first["count"]}]
    return mine + later


def fault_of(shape: list[int], pieces: list[Pieces], parts: int) -> str | None:
    """Why these can't be the pieces of a tensor of this shape; boxes that lie apart are the caller's to prove."""
    whole = Fragment.whole("", tuple(shape)).box
    ends: dict[Box, int] = {}
    for one in sorted(pieces, key=lambda p: p.start):
        if not len(one.offset) == len(one.size) == len(shape):
            return f"a piece of {len(one.size)} dimensions in a tensor of {len(shape)}"
        if not one.box.numel or one.box.intersect(whole) != one.box:
            return f"the piece of size {one.size} at {one.offset} leaves the shape {shape}"
        if one.start + (one.count - 1) * one.length >= one.box.numel:
            return f"its pieces leave their box: {one.count} of {one.length} elements from {one.start} on"
        if one.part + one.count > parts:
            return f"a piece lies in part {one.part + one.count - 1}, which is none of {parts}"
        if one.start < ends.get(one.box, 0):
            return f"its pieces overlap at element {one.start}"
        ends[one.box] = one.stop
    return None


def _corners(box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Its first element and its last."""
    return box.offset, tuple(o + s - 1 for o, s in zip(box.offset, box.size, strict=True))


def _flat(element: tuple[int, ...], box: Box) -> int:
    """Its number in the box, laid flat."""
    place = 0
    for index, offset, size in zip(element, box.offset, box.size, strict=True):
        place = place * size + index - offset
    return place

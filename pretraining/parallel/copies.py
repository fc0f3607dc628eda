"""Which rank writes what several hold: each rank says it of its own fragments, and all reach the same result, without a
message between them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TypeVar

from pretraining.parallel.fragments import Fragment
from pretraining.parallel.mesh import Axis, Mesh

T = TypeVar("T")


def dealt(held: Iterable[tuple[Fragment, T]], mesh: Mesh) -> list[tuple[Fragment, T]]:
    """Those of this rank's fragments that it writes: what is copied over ranks falls to the one of them with the least.

    A statistic of a whole tensor is written where that tensor's first element lies.
    """
    mine: list[tuple[Fragment, T]] = []
    copied: dict[frozenset[Axis], list[tuple[Fragment, T]]] = {}
    for fragment, value in held:
        if not fragment.numel or (fragment.part is not None and not _is_first(fragment.part)):
            continue
        axes = frozenset(axis for axis in fragment.copied_over if mesh.size(axis) > 1)
        (copied.setdefault(axes, []) if axes else mine).append((fragment, value))
    for axes, alike in copied.items():
        # the ranks along these axes have this same list, whatever else each of them holds
        loads = [(0, place) for place in range(mesh.size(*axes))]
        for fragment, value in sorted(alike, key=lambda entry: (-entry[0].numel, entry[0].name, entry[0].start)):
            load, place = loads[0]
            heapq.heapreplace(loads, (load + fragment.numel, place))
            if place == mesh.place(*axes):
                mine.append((fragment, value))
    return mine


def _is_first(part: Fragment) -> bool:
    return part.start == 0 and not any(part.box.offset)

"""`make bench-agreement`: what it costs that ranks agree, on gloo and the CPU: in each step, and at each save.

torchrun --nproc-per-node 2 -m benchmarks.agreement [MILLION_PARAMETERS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pretraining.parallel.host import host_sum
from pretraining.parallel.launch import read_launch
from pretraining.parallel.meeting import meet
from pretraining.parallel.mesh import Mesh
from pretraining.parallel.replicas import unequal_replicas
from pretraining.parallel.world import start_world, stop_world
from pretraining.run.agreement import code_facts, require_equal_replicas, require_ownership, require_same
from pretraining.run.ownership import Ownership

REPEATS = 11


class Weights:
    """As many as an engine has, in 100 tensors."""

    def __init__(self, millions: float, mesh: Mesh) -> None:
        self.mesh = mesh
        self.tensors = {f"weight_{n}": torch.randn(int(millions * 1e4), generator=_generator(n)) for n in range(100)}

    def unequal_replicas(self) -> Mapping[str, float]:
        return unequal_replicas(self.tensors, self.mesh)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def milliseconds(work: Callable[[], object]) -> float:
    """The median of REPEATS."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def main() -> None:
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 25.0
    launch = read_launch()
    began = time.perf_counter()
    meeting = meet(launch)
    met = time.perf_counter()
    require_same(meeting, code_facts([]))
    compared = time.perf_counter()
    world = start_world(launch, meeting=meeting)
    weights = Weights(millions, world.mesh)
    with tempfile.TemporaryDirectory() as folder:
        owner = Ownership(Path(folder), print, print) if world.is_main else None
        rows = {
            "meeting, once": 1000 * (met - began),
            "config and code compared, once": 1000 * (compared - met),
            "each step: one reduction of 12 numbers on the host": milliseconds(lambda: host_sum(world, [0.0] * 12)),
            "each save: ownership": milliseconds(lambda: require_ownership(world, owner)),
            f"each save: {millions:g} million weights compared": milliseconds(
                lambda: require_equal_replicas(world, weights, True, "now")
            ),
        }
        if owner is not None:
            owner.release()
    if world.is_main:
        print("\n".join(f"{name}: {value:.2f} ms" for name, value in rows.items()))
    stop_world()


if __name__ == "__main__":
    main()

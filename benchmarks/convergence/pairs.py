"""One comparison: the framework and the reference from the same initial weights, then one evaluator for both."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.convergence import ours
from benchmarks.convergence.inputs import write_inputs
from benchmarks.convergence.recipes import Recipe


@dataclass(frozen=True)
class Losses:
    """Over the held-out data, one a seed."""

    recipe: Recipe
    source: str
    ours: list[float]
    reference: list[float]


@dataclass(frozen=True)
class Prepared:
    """A family's data in folder/data; source: where they come from."""

    recipe: Recipe
    folder: Path
    source: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}"


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, by the workers and by the commands they start
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield pool


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    inputs, source = write_inputs(recipe.family, folder / "inputs")
    ours.prepare(recipe, inputs, folder / "data")
    return Prepared(recipe, folder, source)


def compare(pool: Executor, prepared: Prepared, seeds: list[int]) -> Losses:
    """Waits for the results; several comparisons share a pool."""
    sides = [(pool.submit(train_ours, prepared, seed), pool.submit(train_reference, prepared, seed)) for seed in seeds]
    for side in (side for pair in sides for side in pair):
        side.result()
    return Losses(
        prepared.recipe,
        prepared.source,
        _evaluate(pool, prepared, seeds, "ours"),
        _evaluate(pool, prepared, seeds, "reference"),
    )


def train_ours(prepared: Prepared, seed: int) -> None:
    ours.train(prepared.recipe, prepared.data, seed, prepared.seed_folder(seed))


def train_reference(prepared: Prepared, seed: int) -> None:
    from benchmarks.convergence import reference

    folder = prepared.seed_folder(seed)
    ours.write_start(prepared.recipe, prepared.data, seed, folder)
    reference.train(prepared.recipe, prepared.data, folder / "start", seed, folder / "reference")


def _evaluate(pool: Executor, prepared: Prepared, seeds: list[int], side: str) -> list[float]:
    from benchmarks.convergence import reference

    found: list[Future[float]] = []
    for seed in seeds:
        folder = prepared.seed_folder(seed)
        arguments = (prepared.recipe.family, prepared.data, folder / "start", folder / side)
        found.append(pool.submit(reference.evaluate, *arguments))
    return [future.result() for future in found]

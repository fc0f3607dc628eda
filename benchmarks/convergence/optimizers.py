"""LAMB and Adafactor beside AdamW, each at its best of four learning rates: `make convergence-optimizers`.

This framework alone, on BERT's and T5's recipes of the other table, each optimizer with its own schedule; measured by
the same evaluator. Ends with 1 where an optimizer is behind the best of the three by more than the bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.convergence import ours
from benchmarks.convergence.pairs import Prepared, prepare, workers
from benchmarks.convergence.recipes import RECIPES
from benchmarks.convergence.table import markdown, replace_section

BOUND = 0.05  # nats
SEED = 1
FAMILIES = ("bert", "t5")
HEAD = ("family", "optimizer", "schedule", "losses", "best", "above the best of all", f"at most {BOUND}")


@dataclass(frozen=True)
class Candidate:
    """An optimizer with its own schedule; rates: the learning rates that are tried."""

    schedule: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...]


CANDIDATES = {
    "adamw": Candidate(
        "warmup_cosine", ("optimizer.betas=[0.9,0.98]", "scheduler.min_ratio=0"), (5e-4, 1e-3, 2e-3, 4e-3)
    ),
    "lamb": Candidate("warmup_polynomial", (), (2.5e-3, 5e-3, 1e-2, 2e-2)),
    "adafactor": Candidate("inverse_sqrt", ("optimizer.relative_step=false",), (5e-3, 1e-2, 2e-2, 4e-2)),
}
Losses = Mapping[float, float]  # learning rate -> loss over the held-out data


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    with workers(options.workers) as pool, tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        folders = {family: pool.submit(prepare, RECIPES[family], work / family) for family in options.families}
        found = {family: search(pool, folder.result()) for family, folder in folders.items()}
    table = markdown(HEAD, [line for family, losses in found.items() for line in rows(family, losses)])
    print(table)
    if options.families == list(FAMILIES):
        replace_section("convergence-optimizers", table)
    return int(any(gap > BOUND for losses in found.values() for gap in behind(losses).values()))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.convergence.optimizers", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, help="a new folder that keeps data, runs and models")
    return parser.parse_args(arguments)


def search(pool: Executor, prepared: Prepared) -> dict[str, Losses]:
    """-> each optimizer's losses."""
    pool.submit(ours.write_start, prepared.recipe, prepared.data, SEED, prepared.folder).result()
    pending = {
        name: {rate: pool.submit(trial, prepared, name, rate) for rate in candidate.rates}
        for name, candidate in CANDIDATES.items()
    }
    return {name: {rate: loss.result() for rate, loss in losses.items()} for name, losses in pending.items()}


def trial(prepared: Prepared, optimizer: str, rate: float) -> float:
    """-> loss over the held-out data."""
    from benchmarks.convergence import reference

    candidate, folder = CANDIDATES[optimizer], prepared.folder / f"{optimizer}_{rate:g}"
    overrides = (f"optimizer={optimizer}", f"optimizer.lr={rate}", f"scheduler={candidate.schedule}")
    ours.train(prepared.recipe, prepared.data, SEED, folder, (*overrides, *candidate.overrides))
    return reference.evaluate(prepared.recipe.family, prepared.data, prepared.folder / "start", folder / "ours")


def behind(losses: Mapping[str, Losses]) -> dict[str, float]:
    """How far each optimizer's best is above the best of all, in nats."""
    bests = {name: min(tried.values()) for name, tried in losses.items()}
    return {name: best - min(bests.values()) for name, best in bests.items()}


def rows(family: str, losses: Mapping[str, Losses]) -> list[list[str]]:
    gaps = behind(losses)
    return [
        [
            family,
            name,
            CANDIDATES[name].schedule,
            ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in tried.items()),
            f"{min(tried.values()):.3f}",
            f"{gaps[name]:+.3f}",
            "yes" if gaps[name] <= BOUND else "**no**",
        ]
        for name, tried in losses.items()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

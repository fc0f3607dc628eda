"""LAMB and Adafactor beside AdamW, each with its own schedule at its best of several learning rates:
`make convergence-optimizers`.

This framework alone, on shortened recipes of the other table, and on one with four times the batch; measured by the
same evaluator. The best rates stand in docs/users.md as well. Ends with 1 where LAMB or Adafactor is behind the best of
the three by more than the bound on a case with four rates, BERT's and T5's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.convergence import ours
from benchmarks.convergence.inputs import ROOT
from benchmarks.convergence.pairs import Prepared, prepare, workers
from benchmarks.convergence.recipes import RECIPES, Recipe
from benchmarks.convergence.table import markdown, replace_section

BOUND = 0.05  # nats
SEED = 1
HEAD = ("case", "steps", "optimizer", "schedule", "losses", "best", "above the best of all", f"at most {BOUND}")
RATES_HEAD = ("optimizer", "schedule")


@dataclass(frozen=True)
class Case:
    """A recipe, shortened. batch: None for the recipe's. rates: how many learning rates are tried."""

    family: str
    steps: int
    rates: int
    batch: int | None = None

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES[self.family]
        return replace(recipe, steps=self.steps, batch=self.batch or recipe.batch, warmup_steps=self.steps // 10)

    @property
    def name(self) -> str:
        return f"{self.family}, batch {self.recipe.batch}"

    @property
    def folder(self) -> str:
        return f"{self.family}_{self.recipe.batch}"


@dataclass(frozen=True)
class Candidate:
    """An optimizer with its own schedule; rates: the learning rates to try, the likeliest first."""

    schedule: str
    overrides: tuple[str, ...]
    rates: tuple[float, float, float, float]


CASES = (
    Case("bert", steps=300, rates=4),
    Case("bert", steps=120, rates=3, batch=128),
    Case("t5", steps=250, rates=4),
    Case("gpt", steps=400, rates=3),
    Case("vit", steps=120, rates=3),
)
CANDIDATES = {
    "adamw": Candidate(
        "warmup_cosine", ("optimizer.betas=[0.9,0.98]", "scheduler.min_ratio=0"), (2e-3, 1e-3, 4e-3, 5e-4)
    ),
    "lamb": Candidate("warmup_polynomial", (), (2e-2, 1e-2, 4e-2, 5e-3)),
    "adafactor": Candidate("inverse_sqrt", ("optimizer.relative_step=false",), (2e-2, 1e-2, 4e-2, 5e-3)),
}
Losses = Mapping[float, float]  # learning rate -> loss over the held-out data


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    cases = [case for case in CASES if case.family in options.families]
    with workers(options.workers) as pool, tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        folders = [pool.submit(prepare, case.recipe, work / case.folder) for case in cases]
        pending = [start_search(pool, case, folder.result()) for case, folder in zip(cases, folders, strict=True)]
        found = {case: finished(futures) for case, futures in zip(cases, pending, strict=True)}
    table = markdown(HEAD, [line for case, losses in found.items() for line in rows(case, losses)])
    rates = markdown((*RATES_HEAD, *(case.name for case in cases)), rate_rows(found))
    print(f"{table}\n\n{rates}")
    if len(cases) == len(CASES):
        replace_section("convergence-optimizers", table)
        replace_section("rates", rates, ROOT / "docs/users.md")
    return int(any("**no**" in line for case, losses in found.items() for line in rows(case, losses)))


def parse(arguments: list[str]) -> argparse.Namespace:
    families = sorted({case.family for case in CASES})
    parser = argparse.ArgumentParser(prog="benchmarks.convergence.optimizers", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, help="a new folder that keeps data, runs and models")
    return parser.parse_args(arguments)


def start_search(pool: Executor, case: Case, prepared: Prepared) -> dict[str, dict[float, Future[float]]]:
    """-> each optimizer's losses, which are to come."""
    pool.submit(ours.write_start, prepared.recipe, prepared.data, SEED, prepared.folder).result()
    return {
        name: {rate: pool.submit(trial, prepared, name, rate) for rate in sorted(candidate.rates[: case.rates])}
        for name, candidate in CANDIDATES.items()
    }


def finished(futures: Mapping[str, Mapping[float, Future[float]]]) -> dict[str, Losses]:
    return {name: {rate: loss.result() for rate, loss in losses.items()} for name, losses in futures.items()}


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


def rows(case: Case, losses: Mapping[str, Losses]) -> list[list[str]]:
    gaps = behind(losses)
    return [
        [
            case.name,
            str(case.steps),
            name,
            CANDIDATES[name].schedule,
            ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in tried.items()),
            f"{min(tried.values()):.3f}",
            f"{gaps[name]:+.3f}",
            _judged(gaps[name]) if case.rates == 4 and name != "adamw" else "",
        ]
        for name, tried in losses.items()
    ]


def _judged(gap: float) -> str:
    return "yes" if gap <= BOUND else "**no**"


def rate_rows(found: Mapping[Case, Mapping[str, Losses]]) -> list[list[str]]:
    """The best learning rate of each optimizer, case by case."""
    return [
        [f"`{name}`", f"`{candidate.schedule}`", *(f"{best_rate(losses[name]):g}" for losses in found.values())]
        for name, candidate in CANDIDATES.items()
    ]


def best_rate(losses: Losses) -> float:
    return min(losses, key=lambda rate: losses[rate])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

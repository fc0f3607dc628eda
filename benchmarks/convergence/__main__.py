"""The table of convergence: `make convergence`, or `python -m benchmarks.convergence --families gpt --seeds 1`.

All families with three seeds are written into docs/benchmarks.md, less is printed. Ends with 1 where a family is
behind its reference by more than the bound.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from benchmarks.convergence.pairs import Losses, compare, prepare, workers
from benchmarks.convergence.recipes import RECIPES
from benchmarks.convergence.table import deviation, markdown, replace_section

BOUND = 0.02  # nats
SEEDS = [1, 2, 3]
HEAD = ("family", "data and model", "steps x batch", "ours", "reference", "ours - reference", f"at most {BOUND}")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    began = time.monotonic()
    with workers(options.workers) as pool, tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)

        def run(family: str) -> Losses:
            prepared = pool.submit(prepare, RECIPES[family], work / family).result()
            return compare(pool, prepared, options.seeds)

        with ThreadPoolExecutor(len(options.families)) as threads:
            results = list(threads.map(run, options.families))
    table = markdown(HEAD, [row(losses) for losses in results])
    print(table)
    if options.families == list(RECIPES) and options.seeds == SEEDS:
        replace_section("convergence", f"{describe((time.monotonic() - began) / 60)}\n\n{table}")
    return int(any(behind(losses) > BOUND for losses in results))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.convergence", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, help="a new folder that keeps data, runs and models")
    return parser.parse_args(arguments)


def behind(losses: Losses) -> float:
    """Nats, negative where the reference is behind."""
    return mean(losses.ours) - mean(losses.reference)


def row(losses: Losses) -> list[str]:
    recipe = losses.recipe
    return [
        recipe.family,
        f"{losses.source}: {recipe.text}",
        f"{recipe.steps} x {recipe.batch}",
        spread(losses.ours),
        spread(losses.reference),
        f"{behind(losses):+.3f}",
        "yes" if behind(losses) <= BOUND else "**no**",
    ]


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {deviation(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def describe(minutes: float) -> str:
    import torch
    import transformers

    return (
        f"{minutes:.0f} minutes with two processes of one thread ({platform.machine()} CPU, torch {torch.__version__}, "
        f"transformers {transformers.__version__}); mean ± standard deviation of {len(SEEDS)} seeds, nats."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

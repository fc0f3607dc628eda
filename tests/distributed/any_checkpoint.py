"""Every layout saves at step 10 and every layout resumes from each of these checkpoints, to step 20: the losses are
those of the uninterrupted run. `make any-checkpoint` runs all pairs, `make test` some of them."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pretraining.run.checkpoint_format import checkpoint_folder
from tests.distributed.parity import COMMON, FAMILIES, LAYOUTS, OPTIMIZERS, prepare_data, tensor_parallel
from tests.helpers import metrics, run_world, train_alone, train_in_world

SAVED, STEPS, BOUND = 10, 20, 1e-5
ALL = ("one", *LAYOUTS)
Job = tuple[str, str]  # a layout; what it starts from: another's checkpoint, or "" for nothing


def resume(layouts: Sequence[str], start: Path, data: Path, folder: Path, *more: str) -> list[dict[int, Any]]:
    """-> metrics of GPT with LAMB in each layout, from the checkpoint `start`."""
    for layout in layouts:
        run = [*_overrides(data, folder, "lamb", "gpt", layout, ""), f"train.resume='{start}'", *more]
        _run_in_one_world(_world((layout, "")), [run])
    return [metrics(folder / layout) for layout in layouts]


def run_all(layouts: Sequence[str], data: Path, folder: Path, optimizer: str, family: str) -> None:
    """Every layout uninterrupted, then every layout from every other's checkpoint."""
    for sources in ([""], layouts):
        jobs: list[Job] = list(itertools.product(layouts, sources))
        for world, group in itertools.groupby(sorted(jobs, key=_world), key=_world):
            _run_in_one_world(world, [_overrides(data, folder, optimizer, family, *job) for job in group])


def difference(folder: Path, source: str, layout: str) -> float:
    """The largest of the losses after the resume, absolute; batches must be the same."""
    whole, resumed = metrics(folder / source), metrics(folder / f"{source} to {layout}")
    assert sorted(resumed) == list(range(SAVED + 1, STEPS + 1))
    assert all(resumed[step]["batch_hash"] == whole[step]["batch_hash"] for step in resumed)
    return max(abs(resumed[step]["loss"] - whole[step]["loss"]) for step in resumed)


def holds(folder: Path, source: str, layout: str) -> bool:
    """Bit for bit on the same layout."""
    return difference(folder, source, layout) <= (0.0 if source == layout else BOUND)


def _overrides(data: Path, folder: Path, optimizer: str, family: str, layout: str, source: str) -> list[str]:
    kind = "images" if family == "vit" else "text"
    engine = [] if layout == "one" else LAYOUTS[layout][1]
    start = [f"train.resume='{checkpoint_folder(folder / source, SAVED)}'"] if source else []
    name = f"{source} to {layout}" if source else layout
    return [
        *COMMON,
        *FAMILIES[family],
        *OPTIMIZERS[optimizer],
        *engine,
        *start,
        f"train.steps={STEPS}",
        f"train.checkpoint_every={SAVED}",
        "train.keep_last=9",
        f"data.path={data / kind}",
        f"run_dir={folder / name}",
    ]


def _world(job: Job) -> tuple[int, int, str]:
    """Ranks, tensor-parallel size and engine: jobs that agree in them can follow one another in one world."""
    ranks, engine = LAYOUTS.get(job[0], (1, [""]))
    return ranks, tensor_parallel(engine), engine[0]


def _run_in_one_world(world: tuple[int, int, str], runs: Iterable[list[str]]) -> None:
    ranks, split, _ = world
    if ranks == 1:
        for each in runs:
            train_alone(*each)
    else:
        run_world(ranks, _run_each, list(runs), tensor_parallel=split, timeout=1200)


def _run_each(world: Any, runs: list[list[str]]) -> None:
    for each in runs:
        train_in_world(world, *each)


def main() -> int:
    began, failed = time.time(), 0
    with tempfile.TemporaryDirectory() as name:
        data = prepare_data(Path(name))
        for optimizer, family in (("lamb", "gpt"), ("adafactor", "t5")):
            folder = Path(name) / optimizer
            run_all(ALL, data, folder, optimizer, family)
            bad = [pair for pair in itertools.product(ALL, ALL) if not holds(folder, *pair)]
            worst = max(difference(folder, *pair) for pair in itertools.product(ALL, ALL))
            print(
                f"{optimizer} {family}: {len(ALL)} x {len(ALL)} layouts, {len(bad)} fail {bad}, "
                f"largest difference of the loss {worst:.1e}",
                flush=True,
            )
            failed += len(bad)
    print(f"{(time.time() - began) / 60:.0f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

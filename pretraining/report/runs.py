"""What a run's folder says of the run: its config, its curves, its starts, how it stands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, InputError
from data_pipeline.common.yaml_files import read_yaml
from pretraining.report.columns import Column, read_columns
from pretraining.run.json_lines import Entry
from pretraining.run.metrics import METRICS
from pretraining.run.ownership import live_owner
from pretraining.run.starts import read_starts
from pretraining.run.terminal import warn
from pretraining.run.verdict import read_exit_code

Status = Literal["running", "done", "stopped", "failed", "died"]
UNITS = ("tokens", "images")
DEEPEST = 4  # folders below the one that is named: a sweep's runs lie in date/time/number
MOST_RUNS = 200  # more would be no page that anybody reads
HIGHER_IS_BETTER = ("accuracy", "per_second", "tflops", "mfu", "goodput")


@dataclass(frozen=True)
class Run:
    """name: of its folder, with so much of the path as tells it from the others. config: flat, {"train.steps": 1000}.
    starts: lines of starts.jsonl, oldest first."""

    name: str
    folder: Path
    status: Status
    config: Mapping[str, Any]
    columns: Mapping[str, Column]
    starts: Sequence[Entry]

    @property
    def objective(self) -> str:
        return str(self.config.get("objective.name", "?"))

    @property
    def unit(self) -> str:
        return next((unit for unit in UNITS if unit in self.columns), "tokens")

    @property
    def step(self) -> int:
        """The last that it has a line of."""
        return int(max((column.steps[-1] for column in self.columns.values()), default=0))

    @property
    def seconds(self) -> float | None:
        """By the run's clock; None in a folder of a version that kept none."""
        return self.columns["time"].last if "time" in self.columns else None

    def best(self, metric: str) -> tuple[float, int] | None:
        """(the best value of a metric, its step)."""
        column = self.columns.get(metric)
        if column is None:
            return None
        place = int(column.values.argmax() if is_better_higher(metric) else column.values.argmin())
        return float(column.values[place]), int(column.steps[place])

    def goodput(self) -> float | None:
        """The share of the run's clock that went into steps which count: what loading, saves, evaluations, and steps
        that were lost and repeated took is the rest. Without its key in the lines, that of an average step."""
        if "goodput" in self.columns:
            return self.columns["goodput"].last
        steps, seconds = self.columns.get("step_seconds"), self.seconds
        if steps is None or not seconds:
            return None
        return min(1.0, float(np.mean(steps.values)) * float(steps.steps[-1]) / seconds)

    def rate(self) -> float | None:
        """Units per second of the run's clock: what there is in the end, saves, evaluations and restarts included."""
        units, seconds = self.columns.get(self.unit), self.seconds
        return units.last / seconds if units is not None and seconds else None


def is_better_higher(metric: str) -> bool:
    return any(word in metric for word in HIGHER_IS_BETTER)


def find_runs(paths: Sequence[str]) -> list[Run]:
    """The runs in these folders, each of which is a run's or holds some. Raises InputError where one holds none, and
    for a run that cannot be read where it was named itself; of a folder's runs such ones are told, and left out."""
    folders: list[Path] = []
    for path in paths:
        found = sorted(_run_folders(Path(path), DEEPEST))
        if not found:
            raise InputError(f"run_dir={path} is no run's folder, nor does it hold any: none has a config.yaml")
        folders += [folder for folder in found if folder not in folders]
    if len(folders) > MOST_RUNS:
        raise InputError(f"run_dir={','.join(paths)} holds {len(folders)} runs: name {MOST_RUNS} of them at most")
    runs = []
    for name, folder in zip(_names(folders), folders, strict=True):
        try:
            runs.append(_read_run(name, folder))
        except InputError as error:
            if str(folder) in paths or (folder == folders[-1] and not runs):
                raise
            warn(f"warning: {name} is left out: {error}")
    return runs


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
    elif depth and folder.is_dir():
        with os.scandir(folder) as entries:
            below = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
        for name in below:
            yield from _run_folders(folder / name, depth - 1)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read_run(name: str, folder: Path) -> Run:
    config = read_yaml(folder / "config.yaml")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.yaml'} is no configuration of a run")
    starts = read_starts(folder)
    return Run(name, folder, _status(folder), dict(_flat(config)), read_columns(folder / METRICS), starts)


def _status(folder: Path) -> Status:
    """A run whose job is gone without a verdict died; one that was stopped goes on by the same command."""
    if live_owner(folder) is not None:
        return "running"
    code = read_exit_code(folder)
    if code is None:
        return "died"
    return {EXIT_DONE: "done", EXIT_REQUEUE: "stopped"}.get(code, "failed")  # type: ignore[return-value]


def _flat(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """(key, its value in each run; None where it has no such key) of the config, where they differ."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows = [(key, [run.config.get(key) for run in runs]) for key in keys]
    own = ("run_dir", "tracking.run_name")  # each run has its own
    return [(key, row) for key, row in rows if key not in own and any(value != row[0] for value in row)]

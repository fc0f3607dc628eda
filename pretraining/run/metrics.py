"""run_dir/metrics.jsonl: what its lines hold, reading and cutting it, and the curve of the losses."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import read_bytes, write_atomically
from data_pipeline.common.json_files import parse_json
from pretraining.run.terminal import warn_once

Value = int | float | str | list[str] | None
Values = dict[str, Value]  # one line of metrics.jsonl
METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20  # characters; what is longer was not written here
LARGEST_EXACT = 1 << 53  # a reader whose numbers are doubles, as JavaScript's or jq's, rounds integers beyond it


@dataclass(frozen=True)
class TrainingLine:
    """One update. `step` counts updates from 1; `samples` and `units` are totals of the run so far.

    unit: tokens or images, which names two keys. parts: the means of the terms and metrics, where there are several.
    lacking: terms of which the batch has no target; the loss, not finite where it has none at all, is without them.
    grad_norm: before clipping; not finite where the step was skipped. loss_scale: under fp16 only. rank_seconds: of
    each rank's own work, see phases.py; empty for one rank.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    samples: int
    unit: str
    units: int
    step_seconds: float
    units_per_second: float
    batch_hash: int
    utilization: dict[str, float]
    parts: dict[str, float]
    lacking: list[str]
    skipped: bool
    loss_scale: float | None
    spike: bool = False
    rank_seconds: tuple[float, ...] = ()

    def as_json(self) -> Values:
        line: Values = {
            "step": self.step,
            "loss": finite(self.loss),
            "grad_norm": finite(self.grad_norm),
            "lr": self.lr,
            "samples": self.samples,
            self.unit: self.units,
            "step_seconds": self.step_seconds,
            f"{self.unit}_per_second": self.units_per_second,
            "batch_hash": self.batch_hash if self.batch_hash <= LARGEST_EXACT else str(self.batch_hash),
            **self.utilization,
            **{name: finite(value) for name, value in self.parts.items()},
        }
        if self.lacking:
            line["lacking"] = self.lacking
        if self.skipped:
            line["skipped"] = True
        if self.spike:
            line["spike"] = True
        if self.rank_seconds:
            slowest = max(range(len(self.rank_seconds)), key=lambda rank: self.rank_seconds[rank])
            line["slowest_rank"], line["slowest_rank_seconds"] = slowest, self.rank_seconds[slowest]
            line["median_rank_seconds"] = statistics.median(self.rank_seconds)
        return line if self.loss_scale is None else {**line, "loss_scale": self.loss_scale}


@dataclass(frozen=True)
class EvaluationLine:
    """Means over the validation data after `step` updates. parts, lacking: as in a training line.

    units: tokens without padding, or images, of this evaluation. bits_per_byte: of the text in the targets; None where
    they have none.
    """

    step: int
    loss: float
    parts: dict[str, float]
    lacking: list[str]
    unit: str
    units: int
    bits_per_byte: float | None

    def as_json(self) -> Values:
        line: Values = {"step": self.step, "valid_loss": finite(self.loss), f"valid_{self.unit}": self.units}
        if self.bits_per_byte is not None:
            line["valid_bits_per_byte"] = finite(self.bits_per_byte)
        line |= {f"valid_{name}": finite(value) for name, value in self.parts.items()}
        return {**line, "valid_lacking": self.lacking} if self.lacking else line


@dataclass(frozen=True)
class SaveFailedLine:
    """A checkpoint could not be saved, as was known at `step`. failures: so many in a row."""

    step: int
    reason: str
    failures: int

    def as_json(self) -> Values:
        return {"step": self.step, "save_failed": self.reason, "failures": self.failures}


Line = TrainingLine | EvaluationLine | SaveFailedLine


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class MetricsFile:
    """metrics.jsonl, appended to line by line. What a full disk refuses waits, and is written with the next line."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it is no plain file: nothing is written through a link, and a pipe would hang."""
        self.path, self.waiting = path, b""
        try:
            require_plain_metrics(path)
            self.file = self._open()
        except OSError as error:
            raise InputError(f"{path} cannot be written to: {error.strerror or error}") from error

    def _open(self) -> io.FileIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(self.path, flags, 0o666), "ab", buffering=0)

    def append(self, line: Line) -> None:
        self.waiting += json.dumps(line.as_json(), allow_nan=False).encode() + b"\n"
        try:
            self._follow()
            end = os.fstat(self.file.fileno()).st_size
            written = self.file.write(self.waiting)
            if written != len(self.waiting):  # a disk that was full in the midst of it: no torn line stays
                os.ftruncate(self.file.fileno(), end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.waiting = b""
        except OSError as error:
            warn_once(METRICS, f"{METRICS} cannot be written to ({error.strerror or error}): training goes on")

    def _follow(self) -> None:
        """A file that was removed or moved would take the lines with it: a new one is begun. One that has other lines
        may be another job's, and is left alone."""
        found = self.path.lstat() if os.path.lexists(self.path) else None
        if found is not None and (os.path.samestat(os.fstat(self.file.fileno()), found) or found.st_size):
            return
        warn_once(f"{METRICS} is gone", f"{METRICS} was removed: its next lines go into a new one")
        file = self._open()
        self.close()
        self.file = file

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()


def require_plain_metrics(path: Path) -> None:
    """Raises InputError where metrics.jsonl is there and no plain file."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise InputError(f"{path} is not a plain file: it is neither read nor written through a link, pipe or folder")


def last_evaluation(path: Path) -> int:
    """The step of the last one that metrics.jsonl holds; -1 where there is none."""
    lines = read_metrics(path) if path.exists() else []
    return max((step_of(line) for line in lines if "valid_loss" in line), default=-1)


def cut_metrics(path: Path, step: int | None) -> None:
    """Drops torn lines and those beyond `step`, the checkpoint that the run continues from (None: all)."""
    require_plain_metrics(path)
    if path.exists():
        kept = [line for line in read_metrics(path) if step is not None and step_of(line) <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[Values]:
    """All whole lines. Raises InputError where it is no file that can be read."""
    try:
        texts = read_bytes(path).splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = []
    for text in texts:
        try:
            line = parse_json(text) if len(text) <= LONGEST_LINE else None
        except ValueError:  # torn: the process was killed while writing it
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def step_of(line: Values) -> int:
    step = line["step"]
    assert isinstance(step, int), "read_metrics leaves out other lines"
    return step


def points(lines: Iterable[Values], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines that have a number there."""
    return [(step_of(line), value) for line in lines if isinstance(value := line.get(key), int | float)]


def draw_losses(run_dir: Path) -> Path:
    """Training and validation loss over the steps -> run_dir/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run_dir / METRICS)
    train, valid = points(lines, "loss"), points(lines, "valid_loss")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for curve, label, style in ((train, "training", "-"), (valid, "validation", "o-")):
        if curve:
            axes.plot(*zip(*curve, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", title=run_dir.name)
    axes.grid(alpha=0.3)
    if train or valid:
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    write_atomically(run_dir / "loss.png", picture.getvalue())
    return run_dir / "loss.png"

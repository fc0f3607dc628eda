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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import open_file, read_bytes, write_atomically
from data_pipeline.common.json_files import parse_json
from pretraining.run.terminal import warn_once

Value = int | float | str | list[str] | None
Values = dict[str, Value]  # one line of metrics.jsonl
METRICS = "metrics.jsonl"
LONGEST_LINE = 1 << 20  # characters; what is longer was not written here
BLOCK_BYTES = 1 << 16  # read at once from the end of the file
LARGEST_EXACT = 1 << 53  # a reader whose numbers are doubles, as JavaScript's or jq's, rounds integers beyond it


@dataclass(frozen=True)
class TrainingLine:
    """One update. `step` counts updates from 1; `samples` and `units` are totals of the run so far.

    unit: tokens or images, which names two keys. parts: the means of the terms and metrics, where there are several.
    lacking: terms of which the batch has no target; the loss, not finite where it has none at all, is without them.
    grad_norm: before clipping; not finite where the step was skipped. loss_scale: under fp16 only. rank_seconds: of
    each rank's own work, see phases.py; empty for one rank. flops: of the run so far. data_seconds: of this step, in
    which rank 0 waited for data. training_seconds: of all steps of the run that count. peak_bytes: of memory, of the
    rank that has taken most. loss_max: the largest that a data-parallel rank had on its own samples; None for one.
    drawn: samples so far of each corpus of a mixture.
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
    flops: float | None = None
    data_seconds: float | None = None
    training_seconds: float | None = None
    peak_bytes: int = 0
    loss_max: float | None = None
    drawn: Mapping[str, int] = field(default_factory=dict)

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
            **{f"drawn/{name}": number for name, number in self.drawn.items()},
        }
        if self.flops is not None:
            line["flops"] = self.flops
        if self.data_seconds is not None:
            line["data_wait"] = min(1.0, self.data_seconds / self.step_seconds)
        if self.peak_bytes:
            line["memory_gb"] = round(self.peak_bytes / 1e9, 4)
        if self.lacking:
            line["lacking"] = self.lacking
        if self.skipped:
            line["skipped"] = True
        if self.spike:
            line["spike"] = True
        if self.loss_max is not None:
            line["loss_max"] = finite(self.loss_max)
        if self.rank_seconds:
            slowest = max(range(len(self.rank_seconds)), key=lambda rank: self.rank_seconds[rank])
            line["slowest_rank"], line["slowest_rank_seconds"] = slowest, self.rank_seconds[slowest]
            line["median_rank_seconds"] = statistics.median(self.rank_seconds)
        return line if self.loss_scale is None else {**line, "loss_scale": self.loss_scale}


@dataclass(frozen=True)
class EvaluationLine:
    """Means over the validation data after `step` updates. parts, lacking: as in a training line.

    units: tokens without padding, or images, of this evaluation. bits_per_byte: of the text in the targets; None where
    they have none. samples, seen, flops: of training, so far, as in a training line.
    """

    step: int
    loss: float
    parts: dict[str, float]
    lacking: list[str]
    unit: str
    units: int
    bits_per_byte: float | None
    samples: int | None = None
    seen: int | None = None
    flops: float | None = None

    def as_json(self) -> Values:
        line: Values = {"step": self.step, "valid_loss": finite(self.loss), f"valid_{self.unit}": self.units}
        so_far = {"samples": self.samples, self.unit: self.seen, "flops": self.flops}
        line |= {key: value for key, value in so_far.items() if value is not None}
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


@dataclass(frozen=True)
class LayersLine:
    """What layers are like after `step`: {"grad_norm": {layer: value}, "update": ..., ...}, see layer_norms.py."""

    step: int
    norms: dict[str, dict[str, float]]

    def as_json(self) -> Values:
        line: Values = {"step": self.step}
        for kind, layers in self.norms.items():
            line |= {f"layers/{kind}/{layer}": finite(value) for layer, value in layers.items()}
        return line


@dataclass(frozen=True)
class ScoresLine:
    """What an objective says of what the model writes by itself after `step` updates: {"bleu": 27.3}."""

    step: int
    scores: dict[str, float]

    def as_json(self) -> Values:
        return {"step": self.step, **{f"valid_{name}": finite(value) for name, value in self.scores.items()}}


Line = TrainingLine | EvaluationLine | SaveFailedLine | LayersLine | ScoresLine


def as_written(line: Line, seconds: float) -> Values:
    """What metrics.jsonl has of a line that is logged when the run's clock says `seconds`."""
    values = {**line.as_json(), "time": round(seconds, 3)}
    if isinstance(line, TrainingLine) and line.training_seconds is not None and seconds > 0:
        values["goodput"] = round(min(1.0, line.training_seconds / seconds), 4)
    return values


def means(
    sums: Mapping[str, float], counts: Mapping[str, float], terms: Mapping[str, float]
) -> tuple[float, dict[str, float], list[str]]:
    """sums, counts: of each term and metric. terms: with their weights. -> (the loss, NaN where nothing was counted;
    each term and metric by its own count where there are several, NaN where it has none; the terms without a count,
    which the loss lacks)."""
    found = {name: sums[name] / counts[name] if counts[name] else math.nan for name in counts}
    present = {term: weight for term, weight in terms.items() if counts[term]}
    loss = sum(weight * found[term] for term, weight in present.items()) if present else math.nan
    return loss, found if len(found) > 1 else {}, [term for term in terms if not counts[term]]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class MetricsFile:
    """metrics.jsonl, appended to line by line. What a full disk refuses waits, and is written with the next line."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it is no plain file: nothing is written through a link, and a pipe would hang."""
        self.path, self.waiting = path, b""
        try:
            require_plain(path)
            self.file = self._open()
        except OSError as error:
            raise InputError(f"{path} cannot be written to: {error.strerror or error}") from error

    def _open(self) -> io.FileIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(self.path, flags, 0o666), "ab", buffering=0)

    def append(self, values: Values) -> None:
        self.waiting += json.dumps(values, allow_nan=False).encode() + b"\n"
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
        """A file that was removed or moved would take the lines with it: a new one is started. One that has other lines
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


def require_plain(path: Path) -> None:
    """Raises InputError where a file of the run's folder is there and no plain one."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise InputError(f"{path} is not a plain file: it is neither read nor written through a link, pipe or folder")


def last_line(path: Path) -> Values | None:
    """The last whole line of metrics.jsonl; None where there is none. Reads its end alone."""
    return next((line for _, _, line in _from_end(path)), None)


def last_evaluation(path: Path) -> int:
    """The step of the last one that metrics.jsonl holds; -1 where there is none. Reads back to it."""
    return next((step_of(line) for _, _, line in _from_end(path, b'"valid_loss"') if "valid_loss" in line), -1)


def cut_metrics(path: Path, step: int | None) -> None:
    """Drops what comes after the last whole line of `step`, or before it: the checkpoint that the run continues from
    (None: all). Steps never fall from one line to the next, so that only these lines are read."""
    require_plain(path)
    if not path.exists():
        return
    lines: Iterable[tuple[int, int, Values]] = () if step is None else _from_end(path)
    start, length = next(((at, size) for at, size, line in lines if step_of(line) <= (step or 0)), (0, 0))
    try:
        with open(path, "r+b") as file:
            if file.seek(0, os.SEEK_END) != start + length:
                file.truncate(start + length)
            if length:
                file.seek(start + length - 1)
                if file.read(1) != b"\n":  # whole, but for its end
                    file.write(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written to: {error.strerror or error}") from error


def _from_end(path: Path, holding: bytes = b"{") -> Iterator[tuple[int, int, Values]]:
    """(start, length, values) of the whole lines from the last one back, read block by block. holding: bytes that a
    line has, or it is passed over unparsed. Raises InputError where there is no file that can be read."""
    if not path.exists():
        return
    try:
        with open_file(path, links=False) as file:
            for start, text in _texts_from_end(file):
                values = _parse(text) if holding in text else None
                if values is not None:
                    yield start, len(text), values
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _texts_from_end(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(start, line with its end) from the last line back. What is longer than any line is handed out in parts."""
    start, rest = file.seek(0, os.SEEK_END), b""
    while start > 0:
        size = min(start, BLOCK_BYTES)
        start -= size
        file.seek(start)
        lines = (file.read(size) + rest).splitlines(keepends=True)
        # the first may begin in the block before
        first = 1 if start > 0 and len(lines[0]) <= LONGEST_LINE else 0
        rest = lines[0] if first else b""
        end = start + sum(map(len, lines))
        for line in reversed(lines[first:]):
            end -= len(line)
            yield end, line


def _parse(text: bytes) -> Values | None:
    """A line; None for one that is torn, as the process was killed while writing it."""
    try:
        line = parse_json(text) if len(text) <= LONGEST_LINE else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def read_metrics(path: Path) -> list[Values]:
    """All whole lines. Raises InputError where it is no file that can be read."""
    try:
        texts = read_bytes(path).splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return [line for line in map(_parse, texts) if line is not None]


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

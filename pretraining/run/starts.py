"""run_dir/starts.jsonl: when, where and from which step a run was started, and when each start ended in order; and the
run's clock, which goes on over all of them."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.common.errors import InputError
from pretraining.run.json_lines import Entry, append_line, read_lines
from pretraining.run.metrics import METRICS, last_line, require_plain
from pretraining.run.terminal import warn_once
from pretraining.run.verdict import read_exit_code

STARTS = "starts.jsonl"


@dataclass(frozen=True)
class ThisStart:
    """What a job knows of its own start. began: epoch seconds. hosts: each once, of `ranks` ranks. code: a hash of the
    source. job, restart: SLURM's, "" outside."""

    began: float = field(default_factory=time.time)
    ranks: int = 1
    hosts: tuple[str, ...] = field(default_factory=lambda: (socket.gethostname(),))
    code: str = ""
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    restart: str = field(default_factory=lambda: os.environ.get("SLURM_RESTART_COUNT", ""))


@dataclass(frozen=True)
class RunClock:
    """Seconds of wall clock that a run has taken over all its starts, each from its beginning to its last sign of life.
    Waiting between two starts is left out, work that was lost is not. before: of the starts before this one. began:
    this one, by time.monotonic()."""

    before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began


def note_start(run_dir: Path, this: ThisStart, step: int) -> RunClock:
    """Writes the line of this start, which goes on from `step`; to be called before metrics.jsonl is cut. Raises
    InputError where starts.jsonl is no plain file."""
    path = run_dir / STARTS
    require_plain(path)
    require_plain(run_dir / METRICS)
    last = last_line(run_dir / METRICS) or {}
    before = seconds_so_far(read_lines(path), last.get("time"))
    entry = {"kind": "start", "time": round(this.began, 3), "seconds": round(before, 3), "step": step}
    entry |= {"reached": last.get("step", 0), "exit_code": read_exit_code(run_dir)}
    entry |= {key: value for key, value in asdict(this).items() if key != "began"}
    _append(path, entry)
    return RunClock(before, time.monotonic() - (time.time() - this.began))


def note_end(run_dir: Path, clock: RunClock) -> None:
    """Where a start ends by itself; one that is killed leaves no such line."""
    _append(run_dir / STARTS, {"kind": "end", "time": round(time.time(), 3), "seconds": round(clock.seconds(), 3)})


def seconds_so_far(entries: list[Entry], last_time: object) -> float:
    """By the run's clock: up to the last end, or the last line of metrics.jsonl, whose `time` is last_time."""
    found = [entry.get("seconds") for entry in entries] + [last_time]
    return max((float(s) for s in found if isinstance(s, int | float)), default=0.0)


def _append(path: Path, entry: Entry) -> None:
    try:
        append_line(path, entry)
    except OSError as error:
        warn_once(STARTS, f"{STARTS} cannot be written to ({error.strerror or error}): training goes on")


def read_starts(run_dir: Path) -> list[Entry]:
    """The lines of the starts, oldest first; none where the file cannot be read."""
    with suppress(InputError):
        return [entry for entry in read_lines(run_dir / STARTS) if entry.get("kind") == "start"]
    return []

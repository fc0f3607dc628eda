"""`pretrain --multirun`: one run for each combination of values, one after another, and a table of how they ended."""

from __future__ import annotations

import csv
import io
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.compose import raise_problems
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, InputError
from data_pipeline.common.files import write_atomically
from data_pipeline.common.sweeps import Combination, combinations, folder_names
from data_pipeline.shards.manifest import load_manifest
from pretraining.config import load_config
from pretraining.run.metrics import METRICS, points, read_metrics
from pretraining.run.run_dir import is_done
from pretraining.run.signals import StopRequest
from pretraining.run.terminal import tell, warn
from pretraining.run.verdict import read_exit_code

RESULTS = "results.csv"
POLL_SECONDS = 0.5
COLUMNS = ("run", "ended", "steps", "loss", "best valid_loss", "at step")


@dataclass(frozen=True)
class Member:
    """One run of a sweep, in a folder of its own."""

    combination: Combination
    folder: Path

    @property
    def arguments(self) -> list[str]:
        quoted = str(self.folder).replace("'", "\\'")
        return [*self.combination.arguments, f"run_dir='{quoted}'"]


class Sweep:
    """All runs of a command line. Raises InputError with the problems of every combination, before the first starts."""

    def __init__(self, arguments: Sequence[str], stop: StopRequest) -> None:
        self.folder = _sweep_folder(arguments)
        found = combinations([a for a in arguments if not a.startswith("run_dir=")])
        self.members = [Member(c, self.folder / name) for c, name in zip(found, folder_names(found), strict=True)]
        self.stop = stop
        problems: dict[str, None] = {}
        for member in self.members:
            try:
                for folder in load_config(member.arguments).data.folders.values():
                    load_manifest(folder)
            except InputError as error:
                problems[f"{' '.join(member.combination.chosen)}: {str(error).strip()}"] = None
        raise_problems(list(problems))

    def run(self) -> int:
        """-> exit code: 75 where it was stopped, 1 where a run failed. Runs that are done already are passed over, and
        others continued."""
        self.stop.trained = True  # a signal is for the run that is being trained: this process waits for it
        codes = []
        for number, member in enumerate(self.members, start=1):
            head = f"--- {number}/{len(self.members)}  {shlex.join(member.combination.chosen)}  ({member.folder})"
            if is_done(load_config(member.arguments)):
                tell(f"{head}: is done already")
                codes.append(EXIT_DONE)
                continue
            tell(head)
            codes.append(self._train(member))
            if self.stop.reason is not None or codes[-1] == EXIT_REQUEUE:
                warn(f"stopped at run {number} of {len(self.members)}: the same command goes on there")
                return EXIT_REQUEUE
        rows = [_result(member) for member in self.members]
        write_atomically(self.folder / RESULTS, _as_csv(rows))
        tell(_as_table(rows))
        tell(f"all results: {self.folder / RESULTS}; side by side: {_report_command(self.folder)}")
        return EXIT_DONE if not any(codes) else EXIT_FAILED

    def _train(self, member: Member) -> int:
        """In a process of its own: a process group lives as long as its process."""
        process = subprocess.Popen([sys.executable, "-m", "pretraining.train", *member.arguments])
        told = False
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self.stop.reason is not None and not told:
                    told = self.stop.answered = True  # the run has a timeout of its own
                    process.send_signal(signal.SIGTERM)


def _sweep_folder(arguments: Sequence[str]) -> Path:
    named = [a.removeprefix("run_dir=") for a in arguments if a.startswith("run_dir=")]
    if not named or named[-1] in ("", "null"):
        raise InputError(
            "--multirun needs run_dir=FOLDER: each run gets a folder in it, and the same command goes on there"
        )
    folder = load_config([f"run_dir={named[-1]}", "data.path=."]).run_dir
    assert folder is not None
    return Path(folder)


def _report_command(folder: Path) -> str:
    quoted = str(folder).replace("'", "\\'")
    return shlex.join(["pretrain-report", f"run_dir='{quoted}'"])


def _result(member: Member) -> dict[str, str]:
    code, path = read_exit_code(member.folder), member.folder / METRICS
    lines = read_metrics(path) if path.exists() else []
    losses, valid = points(lines, "loss"), points(lines, "valid_loss")
    best_step, best = min(valid, key=lambda point: point[1], default=(0, None))
    ended = {EXIT_DONE: "done", EXIT_FAILED: "failed"}.get(code if code is not None else -1, f"exit code {code}")
    return {
        "run": member.folder.name,
        "ended": ended,
        "steps": str(losses[-1][0]) if losses else "",
        "loss": f"{losses[-1][1]:.4f}" if losses else "",
        "best valid_loss": "" if best is None else f"{best:.4f}",
        "at step": "" if best is None else str(best_step),
    }


def _as_csv(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _as_table(rows: Sequence[dict[str, str]]) -> str:
    """The best one by validation loss is marked."""
    best = min((row for row in rows if row["best valid_loss"]), key=lambda r: float(r["best valid_loss"]), default=None)
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in COLUMNS}
    lines = ["  ".join(column.ljust(widths[column]) for column in COLUMNS)]
    for row in rows:
        line = "  ".join(row[c].ljust(widths[c]) if c in ("run", "ended") else row[c].rjust(widths[c]) for c in COLUMNS)
        lines.append(f"{line}  <- best" if row is best else line)
    return "\n".join(line.rstrip() for line in lines)

"""`pretrain-check`: measures the machines of a job before it trains on them, and names those unlike the others."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, InputError
from data_pipeline.common.fields import PathText, Positive, configclass
from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import write_json
from pretraining.cluster.health import (
    Health,
    asked_faults,
    given_cores,
    given_memory,
    measure_disk,
    measure_product,
    measure_together,
    node_name,
)
from pretraining.cluster.outliers import FIGURES, Verdict, figure, judge
from pretraining.cluster.roll_call import RollCall
from pretraining.parallel.launch import Launch, read_launch
from pretraining.parallel.lost import LostPeer
from pretraining.parallel.meeting import Meeting, meet

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

ABOUT = """pretrain-check: measures the machines of a job, each rank its own, and names outliers.

A figure is an outlier where it is below the median of the other ranks' both by more than a tenth (the disk's: by half)
and by more than their standard deviation; so is a rank with fewer cores, or without what SLURM was asked for. It runs
by itself, and under any launcher that `pretrain` runs under; under srun MASTER_ADDR and MASTER_PORT are to be set.

Example:
  pretrain-check
  srun pretrain-check run_dir=runs/first
  torchrun --nproc-per-node 8 -m pretraining.commands.check run_dir=runs/first
"""
REPORT, OUTLIERS = "check.json", "outliers"  # in run_dir/slurm
MOST_ROWS = 64  # of ranks that are as the others
SPARE_SECONDS = 15.0  # after which a rank that does not come to an end is ended


@configclass
class CheckConfig:
    """Measure the machines of a job.

    run_dir: where the disk is measured, and slurm/check.json and slurm/outliers are written; null for neither.
    seconds: that all of it takes at most, after the ranks have met.
    """

    run_dir: PathText | None = None
    seconds: Positive = 30


def main() -> int:
    return run_command(check, ABOUT, "check", CheckConfig)


def check(overrides: list[str]) -> int:
    """-> 0, also where outliers are named; 75 where not every rank came to an end."""
    config, launch = compose_config("check", overrides, CheckConfig), read_launch()
    folder = None if config.run_dir is None else Path(config.run_dir) / "slurm"
    if launch.rank == 0 and folder is not None:
        _begin(folder)
    try:
        meeting = meet(launch, max(60.0, config.seconds))
    except LostPeer as error:
        print(f"rank {launch.rank}: {error}", file=sys.stderr)
        return EXIT_REQUEUE
    with _bounded(config.seconds + SPARE_SECONDS, launch.rank):
        return _Check(config.seconds, folder, launch, meeting).run()


def _begin(folder: Path) -> None:
    """What an earlier check found no longer counts. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (REPORT, OUTLIERS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror or error}") from error


@contextlib.contextmanager
def _bounded(seconds: float, rank: int) -> Iterator[None]:
    """Ends this process where it takes longer: a disk or a device that hangs gives no time-out of its own."""

    def end() -> None:
        print(f"rank {rank}: the check did not come to an end within {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Check:
    """A third of the time is for each rank's own measurements, a third for one that is slow at them, the rest for what
    the ranks do together."""

    def __init__(self, seconds: float, folder: Path | None, launch: Launch, meeting: Meeting) -> None:
        self.seconds, self.folder, self.launch, self.meeting = seconds, folder, launch, meeting
        self.calls = RollCall(meeting)

    def run(self) -> int:
        patience = self.seconds * 2 / 3
        try:
            nodes = self.meeting.gather_texts(node_name())
            mine = measure(self.launch, self.folder, self.seconds / 6)
            said = self.calls.collect(mine, Health, patience)
            whole = None if said is None else _is_whole(said)
            if self.calls.tell(whole, patience) == "together":
                self.meeting.timeout = self.seconds / 3  # of the process group as well
                mine.gb_per_second = _try(mine, lambda: measure_together(self.launch, self.meeting, self.seconds / 6))
                said = self.calls.collect(mine, Health, self.seconds / 3)
            return self._report(said, [node or "" for node in nodes])
        except LostPeer as error:
            print(f"rank {self.launch.rank}: {error}", file=sys.stderr)
            return EXIT_REQUEUE

    def _report(self, said: Sequence[Health | None] | None, nodes: Sequence[str]) -> int:
        if said is None:
            self.calls.tell(None, self.seconds)
            return EXIT_DONE
        silent = f"gave no answer within {self.seconds:g} s"
        ranks = [health or Health(rank, nodes[rank], faults=[silent]) for rank, health in enumerate(said)]
        verdict = judge(ranks)
        print(report(ranks, verdict), flush=True)
        if self.folder is not None:
            _write(self.folder, ranks, verdict)
        self.calls.tell("done", 0.0)
        self.calls.part(sum(health is not None for health in said) - 1)
        return EXIT_DONE


def _is_whole(said: Sequence[Health | None]) -> str:
    """Whether all ranks are fit for a collective, as rank 0 tells them; with one that hangs all would."""
    fit = len(said) > 1 and all(health is not None and not health.faults for health in said)
    return "together" if fit else "alone"


def measure(launch: Launch, folder: Path | None, seconds: float) -> Health:
    """What a rank can measure by itself. seconds: for each measurement."""
    health = Health(launch.rank, node_name(), cores=given_cores(), memory_gb=given_memory() / 1e9)
    device = _try(health, lambda: find(health, launch))
    health.faults += asked_faults(health, launch)
    if device is not None:
        health.tflops = _try(health, lambda: measure_product(device, seconds))
    if folder is not None:
        health.disk_mb_per_second = _try(health, lambda: measure_disk(folder, launch.rank, seconds))
    return health


def find(health: Health, launch: Launch) -> torch.device:
    """Raises InputError."""
    import torch

    from pretraining.parallel.world import find_device

    device = find_device(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        health.device = f"{device}, {torch.cuda.get_device_name(device)}"
        health.device_gb = torch.cuda.mem_get_info(device)[0] / 1e9
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(health.cores or 1)))
    return device


def _try(health: Health, work: Callable[[], T]) -> T | None:
    """A measurement that fails is what is looked for: it is noted, whatever it is."""
    try:
        return work()
    except Exception as error:
        health.faults.append(str(error).splitlines()[0] if str(error) else repr(error))
        return None


def report(ranks: Sequence[Health], verdict: Verdict) -> str:
    """A row a rank, of many only those that stand out; the medians; who was named and why."""
    shown = ranks if len(ranks) <= MOST_ROWS else [health for health in ranks if health.rank in verdict.reasons]
    rows = [["rank", "node", "device", *(words for words, _ in FIGURES.values())]]
    rows += [[str(h.rank), h.node, h.device, *(_number(figure(h, name)) for name in FIGURES)] for h in shown]
    if len(ranks) > 1:
        rows.append(["median", "", "", *(_number(_median(ranks, name)) for name in FIGURES)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    nodes = {health.rank: health.node for health in ranks}
    lines += [f"rank {rank} ({nodes[rank]}): {'; '.join(texts)}" for rank, texts in verdict.reasons.items()]
    if verdict.reasons and not verdict.nodes:
        lines.append("no node is named: more than half of them stand out")
    return "\n".join([*lines, f"outliers: {', '.join(verdict.nodes) or 'none'}"])


def _median(ranks: Sequence[Health], name: str) -> float | None:
    values = [value for health in ranks if (value := figure(health, name)) is not None]
    return statistics.median(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _write(folder: Path, ranks: Sequence[Health], verdict: Verdict) -> None:
    """check.json, a key a line so that a shell finds them, and the names of nodes for the job's script."""
    rates = [health.disk_mb_per_second for health in ranks if health.disk_mb_per_second is not None]
    values = {
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "start": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "outliers": ",".join(verdict.nodes),
        "disk_mb_per_second": sum(rates) if rates else None,
        "reasons": {str(rank): texts for rank, texts in verdict.reasons.items()},
        "ranks": [asdict(health) for health in ranks],
    }
    try:
        write_json(folder / REPORT, values)
        write_atomically(folder / OUTLIERS, "".join(f"{node}\n" for node in verdict.nodes))
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())

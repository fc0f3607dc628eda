"""Jobs of slurm/pretrain.sbatch, as a user submits them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.common.json_files import read_json_if_there
from tests.faults.runs import losses
from tests.helpers import ROOT, TINY, metrics
from tests.slurm.cluster import Cluster

TWO_NODES = ("--nodes=2", "--ntasks-per-node=2")  # four ranks: with two, the order of a sum cannot show
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Runs:
    """Where the jobs' data and folders lie. Each run has a folder NAME with run/ (or what the job made) and job.log."""

    def __init__(self, cluster: Cluster, corpus: Path, folder: Path) -> None:
        self.cluster, self.corpus, self.folder = cluster, corpus, folder

    def submit(
        self, name: str, *overrides: str, options: tuple[str, ...] = (), steps: int = 12, **settings: str
    ) -> Job:
        """settings: PRETRAIN_*, by the rest of their names, and variables of the ranks."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        run_dir = () if any("run_dir=" in o for o in overrides) else (f"run_dir={folder}/run",)
        command = (
            "sbatch",
            "--parsable",
            f"--output={folder}/job.log",
            *options,
            "slurm/pretrain.sbatch",
            *TINY,
            f"data.path={self.corpus}",
            f"train.steps={steps}",
            "train.checkpoint_every=4",
            "model.dropout=0.1",
            "modules=[tests.slurm.pace]",
            *run_dir,
            *overrides,
        )
        environment = {"PRETRAIN_PYTHON": sys.executable, "PACE": str(folder), **settings}
        return Job(self.cluster, self.cluster.run(*command, cwd=ROOT, **environment).strip(), folder)


class Job:
    """id: of the job, or of the whole array."""

    def __init__(self, cluster: Cluster, id: str, folder: Path) -> None:
        self.cluster, self.id, self.folder, self.run_dir = cluster, id, folder, folder / "run"

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text() if (self.folder / "job.log").exists() else ""

    def starts(self, kind: str) -> list[list[str]]:
        """The lines of run_dir/slurm/starts of this kind, in fields."""
        path = self.run_dir / "slurm" / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(kind)]

    def step(self) -> int:
        """The last one that is logged."""
        return max(metrics(self.run_dir), default=0) if (self.run_dir / "metrics.jsonl").exists() else 0

    def until(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {seconds:g} s; {self.cluster.state(self.id)}\n{self.told()}")
            time.sleep(0.2)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.step() >= step, f"step {step}")

    def until_start(self, number: int) -> None:
        """Counted from 1."""
        self.until(lambda: len(self.starts("begin")) >= number, f"start {number}")

    def until_ended(self, seconds: float = 400) -> int:
        """-> exit code of the job."""
        self.until(lambda: self.cluster.state(self.id) in ENDED, "the end", seconds)
        return self.cluster.exit_code(self.id)

    def was_saved_at_a_stop(self, start: int, step: int) -> bool:
        """Not by train.checkpoint_every: whether rank 0 said so at the end of this start, counted from 0."""
        log = self.run_dir / "slurm" / "logs" / f"{self.id}.{start}.rank0.log"
        return step > 0 and f": step {step} is saved in " in log.read_text()

    def told(self) -> str:
        logs = sorted((self.run_dir / "slurm" / "logs").glob("*.rank0.log"))
        return "\n".join([self.log, *(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in logs)])

    def losses(self) -> list[tuple[object, ...]]:
        return losses(self.run_dir)

    def run_json(self, key: str) -> object:
        return read_json_if_there(self.run_dir / "run.json").get(key)


def require(condition: object, job: Job, what: str) -> None:
    if not condition:
        raise AssertionError(f"{what}\n{job.told()}")

"""What a job asks of a cluster, checked before anything is queued."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from data_pipeline.common.fields import (
    NonNegative,
    Paths,
    PathText,
    Positive,
    PositiveFloat,
    configclass,
    used_with,
)

_LIMIT = re.compile(r"(?:(?P<days>\d{1,4})-)?(?P<clock>\d{1,6}(?::\d{1,2}){0,2})")
# Options of sbatch that keys of ours set, the job's own script and environment, and what would start another script.
_OURS = {
    "partition": "cluster.partition",
    "account": "cluster.account",
    "qos": "cluster.qos",
    "nodes": "cluster.nodes",
    "gpus-per-node": "cluster.gpus_per_node",
    "ntasks": "cluster.tasks_per_node",
    "ntasks-per-node": "cluster.tasks_per_node",
    "cpus-per-task": "cluster.cpus_per_task",
    "mem": "cluster.memory",
    "time": "cluster.time_limit",
    "signal": "cluster.lead_seconds",
    "requeue": "cluster.requeue",
    "no-requeue": "cluster.requeue",
    "array": "--multirun",
    "dependency": "cluster.chain",
    "job-name": "cluster.job_name",
    "output": "run_dir, whose folder slurm/ has the logs",
    "error": "run_dir, whose folder slurm/ has the logs",
    "open-mode": "nothing: logs are appended",
    "chdir": "nothing: a job runs in the folder that it is submitted from",
    "wrap": "nothing: the script is slurm/pretrain.sbatch",
    "parsable": "nothing",
    "test-only": "dry_run=true",
    "wait": "nothing",
}


def limit_seconds(text: str) -> int:
    """A time limit as SLURM writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
    Raises ValueError."""
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ValueError("minutes, hours:minutes:seconds or days-hours:minutes:seconds is meant")
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    total = ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError("a job of no time could do nothing")
    return total


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _limit(text: str) -> str:
    limit_seconds(text)
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.,:+@=-]{1,200}", text):
        raise ValueError("letters, digits and . , : _ + @ = - are meant")
    return text


def _option(text: str) -> str:
    name = text.removeprefix("--").partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\n\r\0]+)?", text):
        raise ValueError("an option of sbatch is meant, as in --constraint=a100 or --exclusive")
    if name in _OURS:
        raise ValueError(f"--{name} is set by {_OURS[name]}")
    return text


def _one_line(text: str) -> str:
    if not text or any(ord(character) < 32 for character in text):
        raise ValueError("a text of one line is meant")
    return text


Word = Annotated[str, pydantic.BeforeValidator(_as_text), pydantic.AfterValidator(_word)]
Line = Annotated[PathText, pydantic.AfterValidator(_one_line)]
Limit = Annotated[str, pydantic.BeforeValidator(_as_text), pydantic.AfterValidator(_limit)]
Option = Annotated[str, pydantic.AfterValidator(_option)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
NOT_NONE: Any = used_with("container", "pyxis", "apptainer")


@configclass
class ClusterConfig:
    """What a job asks of a cluster, and how it runs there.

    name: decides where jobs go: slurm, or none, which takes no job.
    partition, account, qos: as sbatch takes them; null leaves them to the site.
    nodes: how many.
    gpus_per_node: 0 trains on CPUs.
    gpu_type: the name that the site has for its GPUs, as in --gpus-per-node=TYPE:4; null asks for any.
    tasks_per_node: ranks of a node; null for one a GPU, and one where there are none.
    cpus_per_task: cores of a rank, its data workers' included.
    memory: of a node, as in 480G; 0 for all that it has, null leaves it to the site.
    time_limit: minutes, hours:minutes:seconds or days-hours:minutes:seconds.
    environment_modules: what is loaded by `module load` first.
    setup: a file of shell commands that the job runs after that, and before anything else.
    container: what a rank runs in.
    image: of the container: a file, or a name that pyxis takes.
    mounts: folders that it sees besides run_dir and the working directory, as PATH or PATH:PATH_INSIDE.
    python: the interpreter; null for the one that pretrain-submit runs in, in a container for its own.
    launcher: srun starts a task per rank, torchrun one a node, which starts the ranks.
    srun_options: more options of srun, which starts the ranks, as in ['--cpu-bind=cores'].
    host_suffix: what is added to the first node's name where other nodes reach it by a longer one, as in i on JUWELS.
    signal: what ranks are sent before the time limit; some builds of NCCL use SIGUSR1 themselves.
    lead_seconds: how long before the time limit: more than a step and a save take.
    site_env: a file of the site's environment variables, NCCL's above all, each as NAME=value; null for slurm/site.env.
    options: more options of sbatch, as in ['--constraint=a100'].
    job_name: null makes one of run_dir's name. Jobs of one name follow each other in a chain.
    at_once: with --multirun, how many members of the job array may run at the same time; null for all.
    requeue: a job that was stopped requeues itself.
    chain: follow-ups, queued at once, for sites that do not let jobs requeue: each goes on where the one before
        stopped, and ends at once where nothing is left to do.
    max_restarts: of one run; then it gives up.
    check: whether pretrain-check measures the nodes before training: it reports those that are slow, or has them
        excluded and the job requeued.
    peak_tflops: bf16 TFLOP/s of a GPU, from its data sheet, for the estimate of a step's time; null for unknown.
    mfu: the fraction of it that the estimate expects.
    measured: an earlier run's folder, whose metrics.jsonl says how long a step takes; null for run_dir itself.
    """

    name: Literal["none", "slurm"] = "none"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    nodes: Positive = 1
    gpus_per_node: NonNegative = 0
    gpu_type: Word | None = None
    tasks_per_node: Positive | None = None
    cpus_per_task: Positive = 1
    memory: Word | None = None
    time_limit: Limit = "24:00:00"
    environment_modules: list[Line] = Field(default_factory=list)
    setup: Line | None = None
    container: Literal["none", "pyxis", "apptainer"] = "none"
    image: Annotated[Line | None, NOT_NONE] = None
    mounts: Annotated[Paths, NOT_NONE] = Field(default_factory=list)
    python: Line | None = None
    launcher: Literal["srun", "torchrun"] = "srun"
    srun_options: list[Line] = Field(default_factory=list)
    host_suffix: Word | None = None
    signal: Literal["USR1", "USR2", "TERM"] = "USR1"
    lead_seconds: Positive = 300
    site_env: Line | None = None
    options: list[Option] = Field(default_factory=list)
    job_name: Word | None = None
    at_once: Positive | None = None
    requeue: bool = True
    chain: NonNegative = 0
    max_restarts: NonNegative = 50
    check: Literal["off", "report", "exclude"] = "report"
    peak_tflops: PositiveFloat | None = None
    mfu: Share = 0.3
    measured: PathText | None = None

    @property
    def tasks(self) -> int:
        """Ranks of a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks

    @property
    def requeues(self) -> bool:
        """Whether a job that was stopped requeues itself; a follow-up may be there to go on instead."""
        return self.requeue and not self.chain

    @property
    def limit_seconds(self) -> int:
        return limit_seconds(self.time_limit)

    def problems(self) -> list[str]:
        """Contradictions between keys, each with its values."""
        found = []
        if self.name == "none":
            found.append("cluster=none takes no job: choose cluster=slurm, or a site's own (--help lists them)")
        if self.gpus_per_node and self.tasks != self.gpus_per_node:
            found.append(
                f"cluster.tasks_per_node={self.tasks}, but cluster.gpus_per_node={self.gpus_per_node}: "
                "a rank has one GPU"
            )
        if self.gpu_type is not None and not self.gpus_per_node:
            found.append(f"cluster.gpu_type={self.gpu_type} has no effect with cluster.gpus_per_node=0")
        if self.container != "none" and self.image is None:
            found.append(f"cluster.container={self.container} needs cluster.image")
        found += [f"cluster.mounts: {mount!r} holds a comma" for mount in self.mounts if "," in mount]
        if self.lead_seconds >= self.limit_seconds:
            found.append(
                f"cluster.lead_seconds={self.lead_seconds} is not below cluster.time_limit={self.time_limit}, "
                f"{self.limit_seconds} s"
            )
        return found

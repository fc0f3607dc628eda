"""What the site allows, asked of SLURM's own commands; what does not answer is not checked, and that is told."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cluster.config import ClusterConfig, limit_seconds
from pretraining.cluster.finding import Finding
from pretraining.cluster.plan import Plan

PATIENCE_SECONDS = 15.0  # for a command of SLURM's: a controller that is busy answers late
UNLIMITED = ("infinite", "UNLIMITED", "n/a")
# What these say in the environment counts for sbatch more than a script's #SBATCH lines.
_VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "array": "SBATCH_ARRAY_INX",
    "gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "job-name": "SBATCH_JOB_NAME",
    "mem": "SBATCH_MEM_PER_NODE",
    "no-requeue": "SBATCH_REQUEUE",
    "open-mode": "SBATCH_OPEN_MODE",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "requeue": "SBATCH_NO_REQUEUE",
    "signal": "SBATCH_SIGNAL",
    "time": "SBATCH_TIMELIMIT",
}
# What sbatch says where no controller answers; it then judges nothing.
_UNREACHABLE = re.compile("Unable to contact|Connection refused|timed out|configuration source|Zero Bytes")
_REFUSED = ("SBATCH_WAIT",)  # with it sbatch answers when the job has ended
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")  # of the variables of a job that pretrain-submit may itself run in


@dataclass(frozen=True)
class Answer:
    """code: None where the command is not there, or did not answer in time. text: all that it said."""

    code: int | None
    text: str

    @property
    def last_line(self) -> str:
        return (self.text.strip().splitlines() or ["no answer"])[-1]


def ask(
    *command: str, environment: Mapping[str, str] | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> Answer:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience_seconds,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        return Answer(None, f"there is no {command[0]} here")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(None, f"{command[0]} did not answer: {error}")
    return Answer(done.returncode, done.stdout.decode(errors="replace"))


def sbatch_environment(options: Sequence[str]) -> dict[str, str]:
    """This process's, without what would replace one of these options, and without the variables of a job in which it
    may run: sbatch would hand them on, and memory per CPU beside memory per node is an error.

    options: as they stand after #SBATCH.
    """
    replaced = {_VARIABLES.get(option.removeprefix("--").partition("=")[0]) for option in options}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in replaced and name not in _REFUSED and (name in _KEPT or not name.startswith("SLURM_"))
    }


def site_findings(plan: Plan, script: Path, options: Sequence[str]) -> list[Finding]:
    """script: as it would be submitted."""
    return [
        _test_only(script, options),
        *_partition(plan.cluster),
        *_limits(plan),
        _account(plan.cluster),
        _queue(plan),
    ]


def _test_only(script: Path, options: Sequence[str]) -> Finding:
    """sbatch's own trial. Its exit code does not tell in every version; its text does."""
    check = "sbatch --test-only"
    answer = ask("sbatch", "--test-only", str(script), environment=sbatch_environment(options))
    text = " ".join(line.removeprefix("sbatch: ").strip() for line in answer.text.splitlines())
    if answer.code is None or _UNREACHABLE.search(text):
        return Finding(check, "not checked", answer.last_line)
    return Finding(check, "ok" if re.search(r"Job \d+ to start at", text) else "problem", text or "it said nothing")


def _partition(cluster: ClusterConfig) -> list[Finding]:
    check = "partition"
    answer = ask("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G")
    if answer.code != 0:
        return [Finding(check, "not checked", answer.last_line)]
    rows = [Row(*line.split("|", 6)) for line in answer.text.splitlines() if line.count("|") >= 6]
    names = sorted({row.name for row in rows})
    default = next((row.name for row in rows if row.partition.endswith("*")), None)
    wanted = cluster.partition or default
    if wanted is None:
        return [Finding(check, "problem", f"the site has no default: cluster.partition is one of {', '.join(names)}")]
    for name in wanted.split(","):
        if name not in names:
            return [Finding(check, "problem", f"cluster.partition={name} is none of {', '.join(names)}")]
    mine = [row for row in rows if row.name in wanted.split(",")]
    problems = _beyond(cluster, mine)
    if problems:
        return [Finding(check, "problem", f"{wanted}: {text}") for text in problems]
    state = sorted({row.state for row in mine})
    text = f"{wanted}, {sum(row.nodes for row in mine)} nodes, time limit {mine[0].limit}"
    return [Finding(check, "ok", text) if state == ["up"] else Finding(check, "warning", f"{text}, {'/'.join(state)}")]


@dataclass(frozen=True)
class Row:
    """A line of sinfo; nodes of a partition that differ stand in several."""

    partition: str
    state: str
    limit: str
    count: str
    cores: str
    megabytes: str
    resources: str

    @property
    def name(self) -> str:
        return self.partition.rstrip("*")

    @property
    def nodes(self) -> int:
        return _number(self.count)

    def gpus(self, kind: str | None) -> int:
        """Of a node; of this kind only, where one is named."""
        found = re.findall(r"(?:^|,)gpu(?::([^:,(]+))??:(\d+)", self.resources)
        return sum(int(count) for name, count in found if kind is None or name == kind)


def _beyond(cluster: ClusterConfig, rows: Sequence[Row]) -> list[str]:
    """What is asked for that no node of the partition has."""
    found = []
    limits = [limit_seconds(row.limit) for row in rows if row.limit not in UNLIMITED]
    if len(limits) == len(rows) and cluster.limit_seconds > max(limits):
        found.append(f"cluster.time_limit={cluster.time_limit} is beyond the partition's {rows[0].limit}")
    fitting = list(rows)
    kind = cluster.gpu_type
    cores = cluster.tasks * cluster.cpus_per_task
    memory = _megabytes(cluster.memory)
    for key, asked, most, fits in (
        (
            f"cluster.gpus_per_node={cluster.gpus_per_node}{f' of {kind}' if kind else ''}",
            cluster.gpus_per_node,
            max(row.gpus(kind) for row in rows),
            lambda row: row.gpus(kind) >= cluster.gpus_per_node,
        ),
        (
            f"{cluster.tasks} ranks x cluster.cpus_per_task={cluster.cpus_per_task}",
            cores,
            max(_number(row.cores) for row in rows),
            lambda row: _number(row.cores) >= cores,
        ),
        (
            f"cluster.memory={cluster.memory} (MB)",
            memory,
            max(_number(row.megabytes) for row in rows),
            lambda row: _number(row.megabytes) >= memory,
        ),
    ):
        if asked > most:
            found.append(f"{key} is more than a node has: {most}")
        fitting = [row for row in fitting if fits(row)]
    nodes = sum(row.nodes for row in fitting)
    if not found and nodes < cluster.nodes:
        found.append(f"cluster.nodes={cluster.nodes}, but {nodes} nodes have what is asked of each")
    return found


def _number(text: str) -> int:
    """Of sinfo's, which writes 128+ where nodes differ."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _megabytes(memory: str | None) -> int:
    """Of --mem; 0 for what is left to the site."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", memory or "0", re.IGNORECASE)
    if match is None:
        return 0  # sbatch itself says what is wrong with it
    return int(int(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1 << 20}[match[2].upper()])


def _limits(plan: Plan) -> list[Finding]:
    check = "SLURM's settings"
    answer = ask("scontrol", "show", "config")
    if answer.code != 0:
        return [Finding(check, "not checked", answer.last_line)]
    values = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", answer.text, re.MULTILINE))
    cluster, found = plan.cluster, []
    most = _number(values.get("MaxArraySize", ""))
    if len(plan.sweep) > most > 0:
        text = f"a sweep of {len(plan.sweep)} runs is beyond MaxArraySize={most}"
        found.append(Finding(check, "problem", text))
    if values.get("JobRequeue") == "0" and cluster.requeues:
        text = "JobRequeue=0: where the site refuses `scontrol requeue`, use cluster.requeue=false cluster.chain=N"
        found.append(Finding(check, "warning", text))
    known = ", ".join(f"{name}={values[name]}" for name in ("MaxArraySize", "JobRequeue") if name in values)
    return found or [Finding(check, "ok", known)]


def _account(cluster: ClusterConfig) -> Finding:
    """What sacctmgr knows of this user; a site without accounting has no answer."""
    check = "account"
    user = os.environ.get("USER") or str(os.getuid())
    answer = ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=Account,QOS")
    rows = [line.split("|") for line in answer.text.splitlines() if "|" in line]
    if answer.code != 0 or not rows:
        text = answer.last_line if answer.text.strip() else f"sacctmgr knows no account of {user}"
        return Finding(check, "not checked", text)
    accounts = sorted({row[0] for row in rows})
    if cluster.account is not None and cluster.account not in accounts:
        return Finding(
            check, "problem", f"cluster.account={cluster.account} is none of {user}'s: {', '.join(accounts)}"
        )
    mine = [row for row in rows if cluster.account in (None, row[0])]
    qualities = sorted({name for row in mine for name in row[1].split(",") if name})
    if cluster.qos is not None and qualities and cluster.qos not in qualities:
        return Finding(check, "problem", f"cluster.qos={cluster.qos} is none of {', '.join(qualities)}")
    return Finding(check, "ok", f"{cluster.account or accounts[0]}, one of {len(accounts)} of {user}")


def _queue(plan: Plan) -> Finding:
    """A job of this run that is queued already would wait for the folder, or end with 2."""
    check = "queue"
    answer = ask("squeue", "-h", "-n", plan.job_name, "-o", "%i %T")
    if answer.code != 0:
        return Finding(check, "not checked", answer.last_line)
    jobs = answer.text.split("\n")
    queued = [job.strip() for job in jobs if job.strip()]
    if queued:
        return Finding(check, "warning", f"jobs of this run are there already: {', '.join(queued)}")
    return Finding(check, "ok", f"no job of this run ({plan.job_name}) yet")

"""The script that is submitted: options of sbatch, settings, and slurm/pretrain.sbatch of the snapshot with quoted
overrides."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.errors import InputError
from pretraining.cluster.plan import Plan
from pretraining.cluster.snapshot import OWN_GROUPS

_PLAIN = re.compile(r"[A-Za-z0-9_./+=:@-]+")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Surroundings:
    """What a job finds besides its plan: code, the snapshot; python, the interpreter; folder, where it runs; setup and
    sweep, files of the submission, None where it has none."""

    code: Path
    python: str
    folder: str
    setup: Path | None = None
    sweep: Path | None = None


def render(plan: Plan, around: Surroundings) -> str:
    """The whole script."""
    options = "\n".join(f"#SBATCH {option}" for option in sbatch_options(plan, around.folder))
    exports = "\n".join(f"export {name}={bash_quoted(value)}" for name, value in settings(plan, around).items())
    arguments = " \\\n  ".join(bash_quoted(argument) for argument in job_arguments(plan, around.code))
    return f"""#!/usr/bin/env bash
{options}
# Written by pretrain-submit; `sbatch` with this file submits the same job again.
unset "${{!PRETRAIN_@}}"
{exports}
exec bash "$PRETRAIN_CODE/slurm/pretrain.sbatch" \\
  {arguments}
"""


def sbatch_options(plan: Plan, folder: str) -> list[str]:
    """Each as it stands after #SBATCH. folder: that the job runs in."""
    cluster = plan.cluster
    tasks = 1 if cluster.launcher == "torchrun" else cluster.tasks
    gpus = f"{cluster.gpu_type}:{cluster.gpus_per_node}" if cluster.gpu_type else f"{cluster.gpus_per_node}"
    values: dict[str, str | int | None] = {
        "job-name": plan.job_name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "nodes": cluster.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cluster.cpus_per_task * cluster.tasks // tasks,
        "gpus-per-node": gpus if cluster.gpus_per_node else None,
        "mem": cluster.memory,
        "time": cluster.time_limit,
        "signal": f"B:USR1@{cluster.lead_seconds}",
        "array": plan.array,
        "dependency": "singleton" if cluster.chain else None,
        "open-mode": "append",
        "chdir": folder,
        "output": f"{_no_pattern(plan.folder)}/batch-{'%A_%a' if plan.sweep else '%j'}.log",
    }
    flags = ["requeue" if cluster.requeues else "no-requeue"]
    given = [f"--{name}={_sbatch_quoted(str(value))}" for name, value in values.items() if value is not None]
    own = [f"{name}={_sbatch_quoted(v)}" if eq else name for name, eq, v in (o.partition("=") for o in cluster.options)]
    return [*given, *(f"--{flag}" for flag in flags), *own]


def settings(plan: Plan, around: Surroundings) -> dict[str, str]:
    """The variables that slurm/pretrain.sbatch reads."""
    cluster = plan.cluster
    values: dict[str, str | int | Path | None] = {
        "PRETRAIN_CODE": around.code,
        "PRETRAIN_PYTHON": cluster.python or (around.python if cluster.container == "none" else "python"),
        "PRETRAIN_SETUP": around.setup,
        "PRETRAIN_SITE": os.path.abspath(cluster.site_env) if cluster.site_env else None,
        "PRETRAIN_LAUNCHER": cluster.launcher,
        "PRETRAIN_RANKS_PER_NODE": cluster.tasks,
        "PRETRAIN_SRUN": shlex.join(cluster.srun_options) or None,
        "PRETRAIN_HOST_SUFFIX": cluster.host_suffix,
        "PRETRAIN_CONTAINER": cluster.container,
        "PRETRAIN_IMAGE": cluster.image,
        "PRETRAIN_MOUNTS": ",".join(map(_mount, cluster.mounts)) or None,
        "PRETRAIN_SIGNAL": cluster.signal,
        "PRETRAIN_REQUEUE": "requeue" if cluster.requeues else "chain" if cluster.chain else "none",
        "PRETRAIN_MAX_RESTARTS": cluster.max_restarts,
        "PRETRAIN_SWEEP": around.sweep,
        "PRETRAIN_CHECK": cluster.check,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def setup_text(plan: Plan) -> str:
    """Shell commands that the job begins with; "" for none. Raises InputError."""
    cluster = plan.cluster
    loads = "".join(f"module load {bash_quoted(name)}\n" for name in cluster.environment_modules)
    if cluster.setup is None:
        return loads
    try:
        return loads + Path(cluster.setup).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cluster.setup={cluster.setup} cannot be read: {error}") from error


def sweep_text(plan: Plan) -> str:
    """The overrides of each run of a sweep, a line each, quoted; "" for a single run."""
    lines = [[*member.overrides, f"run_dir={hydra_quoted(member.folder)}"] for member in plan.sweep]
    return "".join(f"{shlex.join(words)}\n" for words in lines)


def job_arguments(plan: Plan, code: Path) -> list[str]:
    """What `pretrain` is given; run_dir, which the plan names, stands last."""
    folders = [f"--config-dir={code / OWN_GROUPS / str(number)}" for number in range(len(plan.config_dirs))]
    return [*folders, *plan.overrides, f"run_dir={hydra_quoted(str(plan.run_dir))}"]


def hydra_quoted(text: str) -> str:
    """A text, without ' and backslashes, as the value of an override."""
    return text if _PLAIN.fullmatch(text) else f"'{text}'"


def bash_quoted(text: str) -> str:
    """One word of bash, in which nothing is expanded. Control characters are spelled: sbatch takes no script that has
    \\r\\n in it."""
    if not _CONTROL.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", escaped) + "'"


def _sbatch_quoted(value: str) -> str:
    """As sbatch reads a line that begins with #SBATCH: # begins a comment, and quotes keep all but themselves and
    backslashes as it is."""
    if re.fullmatch(r"[A-Za-z0-9_./+=:,@%^\[\]*-]+", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _no_pattern(path: Path) -> str:
    """A folder's name within a file name of sbatch, where % begins a pattern."""
    return str(path).replace("%", "%%")


def _mount(text: str) -> str:
    source, colon, inside = text.partition(":")
    source = os.path.abspath(source)
    return f"{source}:{inside if colon else source}"

"""`pretrain-submit cluster=... ...`: a run as a job of a cluster, checked before it waits in a queue."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_with_problems, raise_problems
from data_pipeline.common.errors import Failure, InputError
from data_pipeline.common.fields import configclass, spelled, to_dict
from data_pipeline.common.files import write_atomically
from data_pipeline.common.sweeps import Combination, combinations, folder_names
from pretraining.cluster.config import ClusterConfig
from pretraining.cluster.finding import Finding, table
from pretraining.cluster.plan import Member, Plan, is_own, make_plan
from pretraining.cluster.preflight import preflight
from pretraining.cluster.script import (
    Surroundings,
    hydra_quoted,
    job_arguments,
    render,
    sbatch_options,
    setup_text,
    sweep_text,
)
from pretraining.cluster.site import ask, sbatch_environment, site_findings
from pretraining.cluster.snapshot import code_version, slurm_dir, take_snapshot
from pretraining.config import RunConfig, load_config
from pretraining.run.agreement import config_facts
from pretraining.run.run_dir import is_done, make_run_dir, new_run_dir, recorded_config, stopped_run_dir
from pretraining.synonyms import SYNONYMS

ABOUT = """pretrain-submit: submits a training run to a cluster.

Before that it looks for all that would stop the job: in the configuration, the batch for so many ranks, the data, the
checkpoint, the disk, the time limit, and what the site allows. With any problem nothing is submitted. The job runs a
copy of the code beside the run, so that what is edited while it waits doesn't change it.

Example:
  pretrain-submit experiment=gpt2_124m data.path=DIR run_dir=runs/first cluster=slurm cluster.nodes=2 \\
    cluster.gpus_per_node=8 cluster.cpus_per_task=8 cluster.partition=gpu dry_run=true
  pretrain-submit --multirun data.path=DIR optimizer.lr=3e-4,6e-4 run_dir=runs/rates cluster=mine
"""
SUBMISSIONS = "submissions"
SBATCH_SECONDS = 120.0  # a busy controller takes a job late, and it must not be submitted twice


@configclass
class SubmitConfig(RunConfig):
    """Everything that decides a run, and what it asks of the cluster.

    cluster: where the job runs, and what it asks for.
    dry_run: print the script and what was checked; nothing is submitted or written.
    """

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    dry_run: bool = False


@dataclass(frozen=True)
class Asked:
    """A command line. arguments: of a sweep those of its first run. common: those that all of its runs have. sweep:
    what each run of it chooses, nothing for a single run."""

    arguments: list[str]
    common: list[str]
    sweep: list[Combination] = field(default_factory=list)


def main() -> int:
    return run_command(submit, ABOUT, "submit", SubmitConfig, SYNONYMS, submit_sweep)


def submit(arguments: list[str]) -> None:
    _check_and_submit(Asked(arguments, arguments))


def submit_sweep(arguments: list[str]) -> None:
    """A job array with a member for each combination of the overrides' values. Raises InputError."""
    sweep = combinations(arguments)
    own = [choice for choice in sweep[0].chosen if is_own(choice)]
    if own:
        raise InputError(f"--multirun: {own[0].partition('=')[0]} is that of all runs of the sweep")
    common = [argument for argument in sweep[0].arguments if argument not in sweep[0].chosen]
    _check_and_submit(Asked(sweep[0].arguments, common, sweep))


def _check_and_submit(asked: Asked) -> None:
    attempt = compose_with_problems("submit", asked.arguments, SubmitConfig, _problems, SYNONYMS)
    config, problems = attempt.config, attempt.problems
    if config is None:
        raise_problems(problems)
    assert config is not None, "or there are problems"
    problems = problems or _problems_of_job(asked.arguments, config)
    if asked.sweep and config.run_dir is None:
        problems.append("--multirun needs run_dir=FOLDER: each run gets a folder in it")
    if asked.sweep and config.cluster.chain:
        problems.append(f"cluster.chain={config.cluster.chain} is for a single run: runs of a sweep requeue themselves")
    named = config.run_dir or stopped_run_dir(config)
    members = [] if problems else _members(asked, config, problems)
    plan = make_plan(config, config.cluster, asked.common, named or new_run_dir(config), tuple(members))
    findings = [*preflight(plan, problems), *_site(plan)]
    print(table(findings), flush=True)
    raise_problems([f"{f.check}: {f.text}" for f in findings if f.status == "problem"])
    if members and all(member.is_done for member in members):
        print(f"nothing left to do: all {len(members)} runs of {plan.run_dir} are done")
    elif config.dry_run:
        around = _surroundings(plan, plan.folder / "code-HASH", plan.folder / SUBMISSIONS / "N")
        print(f"\n{render(plan, around)}", end="")
    else:
        _submit(plan if named else plan.at(make_run_dir(plan.run)), findings)


def _problems(config: SubmitConfig, members: Mapping[str, str]) -> list[str]:
    found = config.problems(config.cluster.ranks, members) + config.cluster.problems()
    return found + (["inspect prints samples: that is for pretrain"] if config.inspect else [])


def _problems_of_job(arguments: Sequence[str], config: SubmitConfig) -> list[str]:
    """What `pretrain` would say of its part: it refuses a file of the user's own that sets keys of the cluster."""
    plan = make_plan(config, config.cluster, arguments, ".")
    try:
        run = load_config([*_options(plan), *plan.overrides], config.cluster.ranks)
    except InputError as error:
        return [f"pretrain itself would say: {error}"]
    ours, theirs = (config_facts(replace(c, run_dir=None)) for c in (plan.run, run))
    return [
        f"the file of cluster=... sets {key}={spelled(ours[key])}, a key of the run, which pretrain would not see: "
        "give it as an override"
        for key in ours
        if ours[key] != theirs.get(key)
    ]


def _members(asked: Asked, config: SubmitConfig, problems: list[str]) -> list[Member]:
    """The runs of a sweep, each with a folder that `pretrain --multirun` would give it. What is wrong with one is added
    to `problems`."""
    found: dict[str, None] = {}
    members = []
    for combination, name in zip(asked.sweep, folder_names(asked.sweep), strict=True):
        folder = os.path.join(os.path.abspath(config.run_dir or ""), name)
        plan = make_plan(config, config.cluster, combination.arguments, folder)
        arguments = [*_options(plan), *plan.overrides, f"run_dir={hydra_quoted(folder)}"]
        try:
            done = is_done(load_config(arguments, config.cluster.ranks))
        except InputError as error:
            found[f"{' '.join(combination.chosen)}: {str(error).strip()}"] = None
            continue
        if any("\n" in choice for choice in combination.chosen):
            found[f"--multirun: {combination.chosen}: a line break is not supported in an array"] = None
        members.append(Member(tuple(combination.chosen), folder, done))
    problems += found
    return members


def _options(plan: Plan) -> list[str]:
    return [f"--config-dir={folder}" for folder in plan.config_dirs]


def _surroundings(plan: Plan, code: Path, folder: Path) -> Surroundings:
    """code: the snapshot. folder: of the submission."""
    setup = folder / "setup.sh" if setup_text(plan) else None
    sweep = folder / "sweep" if plan.sweep else None
    return Surroundings(code, sys.executable, os.getcwd(), setup, sweep)


def _site(plan: Plan) -> list[Finding]:
    """sbatch reads the options of the script on trial; what is in it does not run."""
    script = slurm_dir() / "pretrain.sbatch"
    if not script.is_file():
        return [Finding("script", "problem", f"{script} is missing")]
    around = _surroundings(plan, plan.folder / "code", plan.folder)
    if "\n" in around.folder:  # it would end the line of the script that names it
        return [Finding("script", "problem", f"{around.folder!r}: a job cannot run in a folder of such a name")]
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as trial:
        trial.write(render(plan, around))
        trial.flush()
        return site_findings(plan, Path(trial.name), sbatch_options(plan, around.folder))


def _submit(plan: Plan, findings: Sequence[Finding]) -> None:
    """Raises Failure where sbatch takes no job."""
    code = take_snapshot(plan.folder, plan.run.modules, plan.config_dirs)
    folder = _new_folder(plan.folder / SUBMISSIONS)
    around = _surroundings(plan, code, folder)
    write_atomically(folder / "job.sbatch", render(plan, around))
    for path, text in ((around.setup, setup_text(plan)), (around.sweep, sweep_text(plan))):
        if path is not None:
            write_atomically(path, text)
    _record(plan, folder, code, findings)
    jobs: list[str] = []
    options = sbatch_options(plan, around.folder)
    for _ in range(1 + plan.cluster.chain):
        jobs.append(_sbatch(folder / "job.sbatch", options, jobs))
        write_atomically(folder / "jobs", "".join(f"{job}\n" for job in jobs))
    print(f"submitted job {', '.join(jobs)} ({plan.job_name}): run_dir={plan.run_dir}, logs in {plan.folder}")


def _record(plan: Plan, folder: Path, code: Path, findings: Sequence[Finding]) -> None:
    """Beside the script: what was decided, and what was known."""
    from omegaconf import OmegaConf

    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(recorded_config(plan.run))))
    write_atomically(folder / "cluster.yaml", OmegaConf.to_yaml(OmegaConf.create(to_dict(plan.cluster))))
    write_atomically(folder / "preflight.txt", table(findings) + "\n")
    about = {
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code": code.name,
        "commit": code_version(),
        "arguments": job_arguments(plan, code),
    }
    write_atomically(folder / "submission.json", json.dumps(about, indent=1) + "\n")


def _new_folder(parent: Path) -> Path:
    """The next number's; of two submissions at once each has its own."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10**6):
            folder = parent / f"{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise InputError(f"{parent} cannot be written to: {error.strerror or error}") from error
    raise AssertionError("some number is free")


def _sbatch(script: Path, options: Sequence[str], before: Sequence[str]) -> str:
    """-> the job's number. before: of the chain, those that were submitted already."""
    environment = sbatch_environment(options)
    answer = ask("sbatch", "--parsable", str(script), environment=environment, patience_seconds=SBATCH_SECONDS)
    job = re.search(r"^(\d+)(;.*)?$", answer.text, re.MULTILINE)
    if answer.code != 0 or job is None:
        there = f" (jobs {', '.join(before)} are queued)" if before else ""
        perhaps = ". It may be queued all the same: see squeue --me" if answer.code is None else ""
        raise Failure(f"sbatch took no job{there}: {answer.text.strip()}{perhaps}")
    return job[1]


if __name__ == "__main__":
    sys.exit(main())

"""What is submitted: a run, the ranks that it gets, and what `pretrain` is told."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from data_pipeline.common.overrides import key_of, split_config_dirs
from pretraining.cluster.config import ClusterConfig
from pretraining.config import RunConfig

OWN_KEYS = ("cluster", "dry_run")  # of pretrain-submit, which `pretrain` does not know


@dataclass(frozen=True)
class Member:
    """One run of a sweep. overrides: its own. folder: its run_dir. is_done: there is nothing left to do."""

    overrides: tuple[str, ...]
    folder: str
    is_done: bool = False


@dataclass(frozen=True)
class Plan:
    """run: its run_dir is absolute; of a sweep the first one, with the sweep's folder. overrides: for `pretrain`,
    without run_dir and folders of own groups, which are config_dirs. sweep: the runs of an array, none for a single
    run."""

    run: RunConfig
    cluster: ClusterConfig
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...] = ()
    sweep: tuple[Member, ...] = ()

    @property
    def run_dir(self) -> Path:
        assert self.run.run_dir is not None, "a plan has one"
        return Path(self.run.run_dir)

    @property
    def array(self) -> str | None:
        """The numbers of the sweep's runs that are not done, as sbatch takes them; None for a single run."""
        if not self.sweep:
            return None
        numbers = ",".join(str(number) for number, member in enumerate(self.sweep) if not member.is_done)
        return numbers if self.cluster.at_once is None else f"{numbers}%{self.cluster.at_once}"

    @property
    def folder(self) -> Path:
        """Of what is submitted, and of logs."""
        return self.run_dir / "slurm"

    @property
    def job_name(self) -> str:
        """Another for each run: jobs of one name follow each other in a chain."""
        if self.cluster.job_name is not None:
            return self.cluster.job_name
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.run_dir.name)[:60]
        return f"{name}-{hashlib.sha256(os.fsencode(self.run_dir)).hexdigest()[:6]}"

    def at(self, run_dir: str) -> Plan:
        return replace(self, run=replace(self.run, run_dir=os.path.abspath(run_dir)))


def make_plan(
    config: RunConfig, cluster: ClusterConfig, arguments: Sequence[str], run_dir: str, sweep: tuple[Member, ...] = ()
) -> Plan:
    """config: the run's, with further keys where it is of a subclass. arguments: of pretrain-submit, without those that
    differ within a sweep."""
    run = RunConfig(**{field.name: getattr(config, field.name) for field in fields(RunConfig)})
    folders, overrides = split_config_dirs(arguments)
    config_dirs = tuple(os.path.abspath(os.path.expanduser(folder)) for folder in folders)
    return Plan(run, cluster, tuple(o for o in overrides if not is_own(o)), config_dirs, sweep).at(run_dir)


def is_own(argument: str) -> bool:
    """Whether an override is not for `pretrain`, or says again what the plan says itself."""
    key = key_of(argument)
    return key.split(".")[0] in OWN_KEYS or key == "run_dir"

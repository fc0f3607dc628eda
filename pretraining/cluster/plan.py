"""What is submitted: a run, the ranks that it gets, and what `pretrain` is told."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from data_pipeline.common.overrides import key_of, split_config_dirs
from pretraining.cluster.config import ClusterConfig
from pretraining.config import RunConfig

OWN_KEYS = ("cluster", "dry_run")  # of pretrain-submit, which `pretrain` does not know


@dataclass(frozen=True)
class Plan:
    """run: its run_dir is absolute. overrides: for `pretrain`, without run_dir and folders of own groups, which are
    config_dirs."""

    run: RunConfig
    cluster: ClusterConfig
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        assert self.run.run_dir is not None, "a plan has one"
        return Path(self.run.run_dir)

    @property
    def members(self) -> list[list[str]]:
        """The overrides of each member of an array."""
        return [shlex.split(text) for text in self.cluster.members]

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


def make_plan(config: RunConfig, cluster: ClusterConfig, arguments: Sequence[str], run_dir: str) -> Plan:
    """config: the run's, with further keys where it is of a subclass. arguments: of pretrain-submit."""
    run = RunConfig(**{field.name: getattr(config, field.name) for field in fields(RunConfig)})
    folders, overrides = split_config_dirs(arguments)
    config_dirs = tuple(os.path.abspath(os.path.expanduser(folder)) for folder in folders)
    return Plan(run, cluster, tuple(o for o in overrides if not _is_own(o)), config_dirs).at(run_dir)


def _is_own(argument: str) -> bool:
    """Whether an override is not for `pretrain`, or says again what the plan says itself."""
    key = key_of(argument)
    return key.split(".")[0] in OWN_KEYS or key == "run_dir"

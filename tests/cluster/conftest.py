"""A stand-in for SLURM's commands on PATH, which records how it is called, and for the job's script, which prints what
it is given."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretraining.cluster import snapshot
from pretraining.commands import submit

COMMAND = """#!{python} -S
import json, os, sys
folder = os.path.dirname(os.path.abspath(sys.argv[0]))
name = os.path.basename(sys.argv[0])
with open(os.path.join(folder, "calls"), "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "sbatch":
    with open(os.path.join(folder, "environment"), "w") as file:
        json.dump(dict(os.environ), file)
answers = json.load(open(os.path.join(folder, "answers.json")))
key = name + (" --test-only" if "--test-only" in sys.argv else "")
code, text = answers.get(key, [1, name + ": error: no answer"])
if name == "sbatch" and code == 0 and "--test-only" not in sys.argv:
    jobs = [c for c in map(json.loads, open(os.path.join(folder, "calls"))) if c[0] == name and "--parsable" in c]
    text = str(100 + len(jobs))
print(text)
sys.exit(code)
"""
SCRIPT = """#!/usr/bin/env bash
printf '%s\\0' "$@"
"""
ANSWERS: dict[str, tuple[int, str]] = {
    "sbatch": (0, ""),
    "sbatch --test-only": (0, "sbatch: Job 99 to start at 2026-01-01T00:00:00 using 4 processors on nodes node[1-2]"),
    "sinfo": (0, "gpu*|up|1-00:00:00|4|64|512000|gpu:a100:4\ncpu|up|infinite|2|8|16000|(null)"),
    "scontrol": (0, "MaxArraySize            = 1001\nJobRequeue              = 1"),
    "sacctmgr": (0, "alpha|normal,long\nbeta|normal"),
    "squeue": (0, ""),
}


@dataclass
class Site:
    """A cluster as its commands tell of it. scripts: the folder slurm/ that is submitted."""

    folder: Path
    scripts: Path

    def answers(self, **changed: tuple[int, str]) -> None:
        """By command; test_only is sbatch's."""
        given = {name.replace("test_only", "sbatch --test-only"): answer for name, answer in changed.items()}
        (self.folder / "answers.json").write_text(json.dumps({**ANSWERS, **given}))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def submitted(self) -> list[list[str]]:
        """The argument vectors of sbatch that were no trial."""
        return [call for call in self.calls if call[0] == "sbatch" and "--test-only" not in call]

    @property
    def environment(self) -> dict[str, str]:
        """Of the last call of sbatch."""
        return dict(json.loads((self.folder / "environment").read_text()))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path / "bin", tmp_path / "slurm_scripts")
    found.folder.mkdir()
    found.scripts.mkdir()
    (found.scripts / "pretrain.sbatch").write_text(SCRIPT)
    for name in ("sbatch", "sinfo", "scontrol", "sacctmgr", "squeue"):
        path = found.folder / name
        path.write_text(COMMAND.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    found.answers()
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.setattr(snapshot, "slurm_dir", lambda: found.scripts)
    monkeypatch.setattr(submit, "slurm_dir", lambda: found.scripts)
    return found


def run_script(script: Path) -> list[str]:
    """What a real bash hands to the job's script -> its arguments."""
    done = subprocess.run(["bash", str(script)], capture_output=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]

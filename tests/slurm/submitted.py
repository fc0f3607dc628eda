"""Jobs that `pretrain-submit` makes, on a real SLURM: they run what was submitted, and leave out a slow node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from data_pipeline.common.yaml_files import read_yaml
from tests.helpers import ROOT, TINY
from tests.slurm.jobs import Job, Runs, require

CLUSTER = ("cluster=slurm", "cluster.time_limit=30", "cluster.lead_seconds=60")
HELD = "cluster.options=['--hold','--exclude=vnode[1-2]']"
WILD = "a 'b' \"c\" $(touch HERE) `touch HERE` [d] {e} ; & > HERE % \\ * ? ~ # \n next\r\nlast"
# What is measured on this machine is noise: with a tenth of it on one side, any node could be named
MEASURED = """

def measure_disk(*_):
    return 100.0

def measure_together(*_):
    return 1.0

def measure_product(*_):
    return 0.5 if os.environ["SLURM_NODEID"] == "1" and "SLURM_RESTART_COUNT" not in os.environ else 1.0
"""


def submit(runs: Runs, folder: Path, *overrides: str, code: Path = ROOT) -> str:
    """-> what pretrain-submit said. code: the checkout that it is of; it is called in `folder`."""
    folder.mkdir(exist_ok=True)
    common = (*TINY, f"data.path={runs.corpus}", "train.steps=6", f"run_dir={folder}/run", *CLUSTER)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pretraining.commands.submit", *common, *overrides],
        cwd=folder,
        env={**runs.cluster.environment, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"pretrain-submit ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def job_of(runs: Runs, said: str, folder: Path) -> Job:
    found = re.search(r"submitted job (\d+)", said)
    assert found is not None, said
    return Job(runs.cluster, found[1], folder)


def edited_while_queued(runs: Runs) -> str:
    """The checkout is edited, to the worse, while the job is held. Overrides of all kinds; machines are measured."""
    folder, checkout = runs.folder / "submitted", runs.folder / "checkout"
    for name in ("pretraining", "data_pipeline", "conf", "slurm"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    name = "tracking.run_name='" + WILD.replace("'", "\\'") + "'"
    said = submit(runs, folder, "cluster.nodes=2", "cluster.tasks_per_node=2", HELD, name, code=checkout)
    for file in ("pretraining/job.py", "pretraining/train.py", "conf/pretrain.yaml", "slurm/lib.sh"):
        (checkout / file).write_text("an edit that is not done yet (")
    job = job_of(runs, said, folder)
    runs.cluster.run("scontrol", "release", job.id)
    require(job.until_ended() == 0 and job.step() == 6, job, "it did not finish")
    config = read_yaml(job.run_dir / "config.yaml")
    require(config["tracking"]["run_name"] == WILD, job, f"an override changed: {config['tracking']['run_name']!r}")
    require(not list(folder.glob("HERE")), job, "an override was run")
    report = json.loads((job.run_dir / "slurm/check.json").read_text())
    require(report["job"] == job.id and len(report["ranks"]) == 4, job, f"no check of its machines: {report}")
    return "6 steps of the code as it was submitted; hostile overrides verbatim; four ranks' machines measured"


def slow_node(runs: Runs) -> str:
    """A node that pretrain-check names is excluded, and the job requeued."""
    folder = runs.folder / "slow_node"
    said = submit(runs, folder, "cluster.nodes=2", "cluster.check=exclude", "cluster.options=['--hold']")
    job = job_of(runs, said, folder)
    (health,) = job.run_dir.glob("slurm/code-*/pretraining/cluster/health.py")
    health.write_text(health.read_text() + MEASURED)
    runs.cluster.run("scontrol", "release", job.id)
    job.until_start(2)
    slow = runs.cluster.hosts(job.starts("begin")[0][4])[1]
    require([fields[4] for fields in job.starts("end")] == ["check"], job, "the check did not end the first start")
    require(job.until_ended() == 0 and job.step() == 6, job, "it did not finish")
    require(runs.cluster.show(job.id, "ExcNodeList") == slow, job, f"{slow} is not excluded")
    require(slow not in runs.cluster.hosts(job.starts("begin")[1][4]), job, f"{slow} was taken again")
    return f"{slow}, which was made slow, is named and excluded; requeued, 6 steps elsewhere"


def sweep(runs: Runs) -> str:
    """--multirun as a job array, in folders named by values; the same command again finds nothing to do."""
    folder = runs.folder / "submitted_sweep"
    values = ("optimizer.lr=1e-3,2e-3", "tracking.run_name='it is','b'")
    options = ("cluster.check=off", "cluster.at_once=2", "cluster.options=['--exclude=vnode[1-2]']")
    words = ("--multirun", *values, *options)
    job = job_of(runs, submit(runs, folder, *words), folder)
    names = [f"lr-{rate}_run_name-{name}" for rate in ("0.001", "0.002") for name in ("it_is", "b")]
    for number, name in enumerate(names):
        member = Job(runs.cluster, f"{job.id}_{number}", folder)
        member.run_dir = folder / "run" / name
        require(member.until_ended() == 0 and member.step() == 6, member, f"{name} did not finish")
        rate = read_yaml(member.run_dir / "config.yaml")["optimizer"]["lr"]
        require(name.startswith(f"lr-{rate}_"), member, f"optimizer.lr={rate}")
    said = submit(runs, folder, *words)
    require("nothing left to do: all 4 runs" in said, job, said)
    return "four members in folders by their values, two at once; nothing left to do"

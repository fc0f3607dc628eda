"""What a cluster does to a job, with the real script: each scenario returns what came out, or raises AssertionError."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from data_pipeline.common.yaml_files import read_yaml
from tests.helpers import ROOT, TINY
from tests.slurm.jobs import TWO_NODES, Job, Runs, require

# The run that is disturbed has nodes of its own; the others must not be pre-empted or lose theirs with it
DISTURBED, OTHERS = "--exclude=vnode4", "--exclude=vnode[1-2]"
STEPS = 90  # of the run that is disturbed four times
# Whatever a shell or SLURM could take for its own; Hydra's single quotes around it are taken off by Hydra alone
HOSTILE = 'a  b "c" [d] {e} $HOME $(touch HERE) `touch HERE` ; touch HERE & | > HERE % %j * ? ~ # \\\\ !'


def two_nodes(runs: Runs) -> str:
    """Four ranks on two nodes, undisturbed: what the disturbed run is compared with."""
    job = runs.submit("whole", options=(*TWO_NODES, OTHERS), steps=STEPS)
    require(job.until_ended() == 0 and job.step() == STEPS, job, "it did not finish")
    logs = {path.name for path in (job.run_dir / "slurm" / "logs").iterdir()}
    require(logs == {f"{job.id}.0.rank{rank}.log" for rank in range(4)}, job, f"not a log for each rank: {logs}")
    return f"exit 0, {STEPS} steps, a log for each of 4 ranks"


def time_limit(runs: Runs) -> tuple[Job, str]:
    """The batch shell is signaled before the limit; the ranks save, and the job requeues itself."""
    (runs.folder / "disturbed").mkdir()
    (runs.folder / "disturbed" / "slow").touch()
    job = runs.submit("disturbed", options=(*TWO_NODES, DISTURBED, "--time=30", "--signal=B:USR1@50"), steps=STEPS)
    job.until_step(2)  # the limit comes nearer now, not at a time that a loaded machine may miss
    minutes = int(runs.cluster.run("squeue", "-h", "-j", job.id, "-o", "%M").split(":")[0]) + 1
    runs.cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
    job.until(lambda: job.starts("end"), "a save at the limit", 90)
    runs.cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    _, _, _, saved, cause = job.starts("end")[0]
    require(cause == "signal" and job.was_saved_at_a_stop(0, int(saved)), job, f"{cause} at step {saved}")
    job.until_start(2)
    require("signal: USR1" in job.log, job, "the batch shell was not signaled")
    return job, f"saved step {saved}, requeued itself"


def user_requeue(runs: Runs, job: Job) -> str:
    """`scontrol requeue`: TERM to all, KILL after KillWait (5 s here)."""
    return _interrupted(job, lambda: runs.cluster.run("scontrol", "requeue", job.id))


def preemption(runs: Runs, job: Job) -> str:
    """A job of a higher partition takes one of the nodes."""
    node = runs.cluster.hosts(runs.cluster.show(job.id, "NodeList"))[0]
    urgent = ("sbatch", "--parsable", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    return _interrupted(job, lambda: runs.cluster.run(*urgent))


def _interrupted(job: Job, interrupt: object) -> str:
    assert callable(interrupt)
    starts = len(job.starts("begin"))
    job.until_step(job.step() + 2)
    interrupt()
    job.until_start(starts + 1)
    saved = int(job.starts("begin")[-1][3])
    require(job.was_saved_at_a_stop(starts - 1, saved), job, f"nothing was saved at the signal: step {saved}")
    return f"saved step {saved}, continued"


def killed_node(runs: Runs, job: Job) -> str:
    """The node without the batch shell goes; the job is requeued without it, from the newest periodic checkpoint."""
    starts = len(job.starts("begin"))
    step = job.step()
    job.until_step(step + 6)
    runs.cluster.cut(runs.cluster.hosts(runs.cluster.show(job.id, "NodeList"))[1])
    job.until_start(starts + 1)
    saved = int(job.starts("begin")[-1][3])
    require(saved % 4 == 0 and saved > 0, job, f"step {saved} is no periodic checkpoint")
    return f"requeued on other nodes, from step {saved}"


def same_bits(runs: Runs, job: Job) -> str:
    """All of it beside the undisturbed run."""
    (job.folder / "slow").unlink()
    whole = Job(runs.cluster, "", runs.folder / "whole")
    require(job.until_ended() == 0, job, "it did not finish")
    require(job.losses() == whole.losses(), job, "other losses than the undisturbed run")
    starts = len(job.starts("begin"))
    return f"{STEPS} steps in {starts} starts: loss, grad_norm, lr, batch_hash, samples, tokens bit for bit"


def array(runs: Runs) -> str:
    """Three members with overrides of their own, hostile ones; member 1 is stopped and requeued, alone."""
    folder = runs.folder / "array"
    folder.mkdir()
    (folder / "slow").touch()
    lines = [
        shlex.join([f"optimizer.lr={lr}", f"tracking.run_name='{HOSTILE} {lr}'"]) for lr in ("1e-3", "2e-3", "3e-3")
    ]
    (folder / "sweep").write_text("\n".join(lines) + "\n")
    job = runs.submit("array", options=("--array=0-2", OTHERS), steps=16, PRETRAIN_SWEEP=str(folder / "sweep"))
    members = [Job(runs.cluster, f"{job.id}_{number}", folder) for number in range(3)]
    for number, member in enumerate(members):
        member.run_dir = folder / "run" / str(number)
    members[1].until_step(2)
    runs.cluster.run("scancel", "--batch", "--signal=USR1", members[1].id)
    members[1].until_start(2)
    (folder / "slow").unlink()
    for number, member in enumerate(members):
        require(member.until_ended() == 0, member, f"member {number} did not finish")
        require(len(member.starts("begin")) == 1 + (number == 1), member, f"member {number} has other starts")
        config = read_yaml(member.run_dir / "config.yaml")
        require(config["optimizer"]["lr"] == (number + 1) / 1000, member, "not its line of the sweep")
        name = f"{HOSTILE} {number + 1}e-3"
        require(
            config["tracking"]["run_name"] == name, member, f"an override changed: {config['tracking']['run_name']}"
        )
    require(not _found("HERE", folder), job, "an override was run")
    return "member 1 alone requeued; hostile overrides verbatim in each config.yaml, none was run"


def _found(name: str, folder: Path) -> list[Path]:
    return [path for place in (ROOT, folder, Path.home()) for path in place.glob(name)]


def chain(runs: Runs) -> str:
    """Where requeueing is forbidden: three jobs of one name, one after another."""
    folder = runs.folder / "chain"
    folder.mkdir()
    (folder / "slow").touch()
    options = (OTHERS, "--no-requeue", "--job-name=chain", "--dependency=singleton")
    first, second, third = (runs.submit("chain", options=options, steps=12, PRETRAIN_REQUEUE="chain") for _ in range(3))
    first.until_step(2)
    runs.cluster.run("scancel", "--batch", "--signal=USR1", first.id)
    require(first.until_ended() == 75, first, "the first one was not stopped")
    (folder / "slow").unlink()
    require(second.until_ended() == 0 and second.step() == 12, second, "the second one did not finish the run")
    require(third.until_ended() == 0, third, "the third one failed")
    require("nothing left to do" in third.log and len(third.starts("begin")) == 2, third, "the third one trained")
    return "stopped, finished by the second, nothing left for the third"


def bad_override(runs: Runs) -> str:
    job = runs.submit("bad", "train.step=12", options=(OTHERS,))
    require(job.until_ended() == 2 and len(job.starts("begin")) == 1, job, "not one start that ended with 2")
    return "exit 2, not requeued"


def killed_before_step_1(runs: Runs) -> str:
    """SIGKILL leaves a rank no time to say anything: its ids are on disk."""
    folder = runs.folder / "killed"
    folder.mkdir()
    (folder / "kill").touch()
    options = ("--nodes=2", "--ntasks-per-node=1", OTHERS)
    job = runs.submit("killed", "tracking.wandb=offline", options=options)
    job.until(lambda: job.starts("end"), "the first end")
    id = job.run_json("wandb_id")
    require(job.until_ended() == 0 and job.step() == 12, job, "it did not finish")
    require(
        id is not None and job.run_json("wandb_id") == id, job, f"another W&B run: {id}, {job.run_json('wandb_id')}"
    )
    ends = [folder.name.rsplit("-", 1)[1] for folder in (job.run_dir / "wandb").glob("offline-run-*")]
    require(ends == [id, id], job, f"W&B has {ends}")
    return f"requeued once, the same run_dir and W&B run ({id})"


def no_progress(runs: Runs) -> str:
    (runs.folder / "stuck").mkdir()
    (runs.folder / "stuck" / "kill_always").touch()
    job = runs.submit("stuck", options=(OTHERS,))
    require(job.until_ended() == 1 and len(job.starts("begin")) == 2, job, "not given up after two starts")
    return "given up after two starts without progress, exit 1"


def finished(runs: Runs) -> str:
    job = runs.submit("whole", options=(*TWO_NODES, OTHERS), steps=STEPS)
    require(job.until_ended() == 0 and "nothing left to do" in job.log, job, "it did not end at once")
    return "nothing left to do, exit 0"


def cancelled(runs: Runs) -> str:
    """scontrol would requeue a job that its user has cancelled."""
    (runs.folder / "cancelled").mkdir()
    (runs.folder / "cancelled" / "slow").touch()
    job = runs.submit("cancelled", options=(OTHERS,), steps=60)
    job.until_step(2)
    runs.cluster.run("scancel", job.id)
    job.until_ended()
    require(job.cluster.state(job.id) == "CANCELLED", job, "it came back to life")
    require(
        "not requeued: the job was cancelled" in job.log and len(job.starts("end")) == 1, job, "its end was not told"
    )
    return f"saved step {job.starts('end')[0][3]}, stays cancelled"


def node_failed_twice(runs: Runs) -> str:
    folder = runs.folder / "avoiding"
    folder.mkdir()
    (folder / "slow").touch()
    job = runs.submit("avoiding", options=(OTHERS,))
    job.until_step(1)
    node = job.starts("begin")[0][4]
    (job.run_dir / "slurm" / "failed_nodes").write_text(f"{node}\n{node}\n")
    runs.cluster.run("scontrol", "requeue", job.id)  # SLURM would give the job the same node again
    (folder / "slow").unlink()
    require(job.until_ended() == 0, job, "it did not finish")
    begins = [begin[4] for begin in job.starts("begin")]
    excluded = runs.cluster.hosts(runs.cluster.show(job.id, "ExcNodeList"))
    require(begins[-1] != node and excluded == ["vnode1", "vnode2", node], job, f"ran on {begins}, without {excluded}")
    return f"ran on {begins[0]}, then without it on {begins[-1]}"


def submitted(runs: Runs) -> str:
    """pretrain-submit: a bad override never reaches the queue; a sweep is an array, after a check of its nodes."""
    folder = runs.folder / "refused"
    cluster = ("cluster=slurm", "cluster.time_limit=30", "cluster.lead_seconds=60", "cluster.check=exclude")
    command = (sys.executable, "-m", "pretraining.commands.submit", *TINY, f"data.path={runs.corpus}")
    command = (*command, f"run_dir={folder}", "train.steps=4", *cluster, f"cluster.options=['{OTHERS}']")

    def submit(*more: str) -> subprocess.CompletedProcess[str]:
        environment = runs.cluster.environment
        return subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    bad = submit("train.step=4")
    if bad.returncode != 2 or "train.step" not in bad.stderr or folder.exists():
        raise AssertionError(f"a bad override: {bad}")
    good = submit("--multirun", "train.seed=1,2")
    jobs = sorted((folder / "slurm" / "submissions").glob("*/jobs"))
    if good.returncode or not jobs:
        raise AssertionError(f"a sweep: {good}")
    for number in range(2):
        job = Job(runs.cluster, f"{jobs[0].read_text().strip()}_{number}", folder)
        job.run_dir = folder / f"seed-{number + 1}"
        require(job.until_ended() == 0 and job.step() == 4, job, f"member {number} did not finish: {good}")
        require((job.run_dir / "slurm" / "check.json").exists(), job, "its nodes were not checked")
    return "a bad override: exit 2, nothing queued; a sweep of two: done, each in its folder"


# Stands in for apptainer: SLURM's commands are hidden, and the image has variables of its own
APPTAINER = """#!/bin/bash
shift
while [[ $1 == --* ]]; do case $1 in --pwd | --bind) shift 2 ;; *) shift ;; esac; done
[ "$1" = image.sif ] || exit 3
shift
export OMP_NUM_THREADS=7 OF_THE_SITE=image OF_THE_IMAGE=image
hide='for name in scontrol scancel srun sbatch squeue sinfo; do mount --bind /dev/null "$(command -v $name)"; done'
exec unshare --mount bash -c "$hide; exec \\"\\$@\\"" _ "$@"
"""
# Stands in for the image's python: notes what a rank sees
PYTHON = """#!/bin/bash
{{ scontrol ping >/dev/null 2>&1; echo "scontrol $?"; env | grep -E '^(OF_|OMP_)'; }} >"$PACE/seen"
exec {python} "$@"
"""


def container(runs: Runs) -> str:
    """Nothing within it can requeue the job: the batch script does, outside."""
    folder = runs.folder / "container"
    folder.mkdir()
    (folder / "slow").touch()
    for name, text in (("apptainer", APPTAINER), ("python", PYTHON.format(python=sys.executable))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "site.env").write_text("OF_THE_SITE=site\nOMP_NUM_THREADS=1\n")
    job = runs.submit(
        "container",
        options=(OTHERS,),
        PATH=f"{folder}:{runs.cluster.environment['PATH']}",
        PRETRAIN_CONTAINER="apptainer",
        PRETRAIN_IMAGE="image.sif",
        PRETRAIN_PYTHON=str(folder / "python"),
        PRETRAIN_SITE=str(folder / "site.env"),
    )
    job.until_step(2)
    runs.cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.until_start(2)
    (folder / "slow").unlink()
    require(job.until_ended() == 0 and job.step() == 12, job, "it did not go on")
    seen = set((folder / "seen").read_text().split("\n"))
    require("scontrol 126" in seen, job, f"scontrol can be run in the container: {seen}")
    require({"OF_THE_SITE=site", "OMP_NUM_THREADS=1", "OF_THE_IMAGE=image"} <= seen, job, f"a rank sees {seen}")
    return "requeued from outside; the site's variables win over the image's"


def torchrun(runs: Runs) -> str:
    """A task is a node; the signal passes through torchrun, which waits for the checkpoint."""
    folder = runs.folder / "torchrun"
    folder.mkdir()
    (folder / "slow").touch()
    settings = {"PRETRAIN_LAUNCHER": "torchrun", "PRETRAIN_RANKS_PER_NODE": "1", "PRETRAIN_SIGNAL": "USR2"}
    job = runs.submit("torchrun", options=("--nodes=2", "--ntasks-per-node=1", OTHERS), **settings)
    job.until_step(2)
    runs.cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    job.until_start(2)
    (folder / "slow").unlink()
    require(job.until_ended() == 0 and job.step() == 12, job, "it did not go on")
    saved = int(job.starts("begin")[1][3])
    require(job.was_saved_at_a_stop(0, saved), job, "nothing was saved at the signal")
    return f"USR2 through torchrun: saved step {saved}, requeued itself"

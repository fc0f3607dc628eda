"""Saving that meets a full disk or a stop, as real processes."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from data_pipeline.common.json_files import read_json
from pretraining.run.checkpoint_format import open_checkpoint
from tests.faults.runs import Job, losses
from tests.helpers import metrics, valid_losses

SLOW = "slow:1:0"  # a tenth of a second a step: the disk is full for some of them


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def wait_for(what, job, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline or any(p.exitcode is not None for p in job.ranks):
            job.kill()
            raise AssertionError(f"it did not happen:\n{job.output()}")
        time.sleep(0.05)
    return found


def whole(job):
    """The steps of its whole checkpoints."""
    return sorted(int(f.parent.name[-8:]) for f in (job.run_dir / "checkpoints").glob("step_*/manifest.json"))


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 12)):
                pass
        except OSError:
            return


def test_a_full_disk_is_told_and_training_goes_on(corpus, small_disk):
    """The metrics.jsonl of the steps meanwhile are written when there is room."""
    job = Job(corpus, small_disk / "run", "train.steps=5000", "train.keep_last=2", fault=SLOW)
    wait_for(lambda: whole(job), job)
    fill(small_disk)
    full_since = max(metrics(job.run_dir))
    wait_for(lambda: "could not be saved" in job.output() and "metrics.jsonl cannot be written" in job.output(), job)
    assert "No space left" in job.output()
    kept = whole(job)
    assert kept and all(open_checkpoint(job.run_dir / "checkpoints" / f"step_{step:08d}") for step in kept)
    job.wait_for_step(full_since + 8)  # it goes on
    (small_disk / "filler").unlink()
    wait_for(lambda: max(whole(job)) > full_since + 8, job)
    job.ranks[0].terminate()
    assert job.ends() == [75, 75], job.output()
    assert read_json(job.run_dir / "verdict.json") == {"exit_code": 75, "reason": "stopped by SIGTERM"}
    lines = metrics(job.run_dir)
    assert list(lines) == list(range(1, max(lines) + 1)) and max(whole(job)) == max(lines)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_in_an_evaluation_saves_and_goes_on_exactly(corpus, tmp_path, rank):
    keys = ("train.steps=12", "train.eval_every=6", "train.eval_batches=2", "train.checkpoint_every=100")
    undisturbed = Job(corpus, tmp_path / "undisturbed", *keys)
    stopped = Job(corpus, tmp_path / "run", *keys, fault=f"stop_in_evaluation:{rank}:7")
    assert undisturbed.ends() == [0, 0], undisturbed.output()
    assert stopped.ends() == [75, 75], stopped.output()
    assert whole(stopped) == [6] and 6 not in valid_losses(stopped.run_dir)
    again = Job(corpus, stopped.run_dir, *keys)
    assert again.ends() == [0, 0], again.output()
    assert losses(again.run_dir) == losses(undisturbed.run_dir)
    assert valid_losses(again.run_dir) == valid_losses(undisturbed.run_dir)

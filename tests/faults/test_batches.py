"""Batches that go wrong, as real processes: skipped on all ranks alike, told by their documents, passed over."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from data_pipeline.common.json_files import read_json
from pretraining.run.ledger import Ledger
from pretraining.run.spikes import SpikeWatch
from tests.faults.runs import Job, losses
from tests.helpers import metrics

BAD = "180"  # a sample of step 23
ROLLS_BACK = "train.on_spike=rollback"


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all_and_its_batch_is_told(corpus, tmp_path):
    job = Job(corpus, tmp_path / "run", "train.steps=8", fault="nan:1:4")
    assert job.ends() == [0, 0], job.output()
    assert [step for step, line in metrics(job.run_dir).items() if line.get("skipped")] == [4]
    (entry,) = Ledger(job.run_dir).read("skipped")
    assert (entry["step"], entry["samples"]) == (4, list(range(24, 32)))
    assert re.search(r"step 4 was skipped: .*; its batch is samples 24 to 31: train/shard-", job.output())


def test_divergence_ends_with_the_batch_and_the_same_again_is_said(corpus, tmp_path):
    for again in (False, True):
        job = Job(corpus, tmp_path / "run", fault="nan_from:1:7")
        assert job.ends() == [1, 1], job.output()
        verdict = read_json(job.run_dir / "verdict.json")
        assert verdict["exit_code"] == 1
        assert re.search(
            r"up to step 26 .* diverged .*; its batch is samples 200 to 207: train/shard-", verdict["reason"]
        )
        assert ("a restart will not mend it" in verdict["reason"]) == again, verdict


@pytest.fixture(scope="module")
def rolled_back(corpus, tmp_path_factory):
    job = Job(
        corpus, tmp_path_factory.mktemp("spike") / "run", ROLLS_BACK, "train.keep_last=9", fault=f"spike:0,1:{BAD}"
    )
    assert job.ends() == [0, 0], job.output()
    return job


def test_a_spike_is_logged_with_its_batch_and_training_goes_on(corpus, tmp_path, rolled_back):
    job = Job(corpus, tmp_path / "run", size=1, fault=f"spike:0:{BAD}")
    assert job.ends() == [0], job.output()
    lines = metrics(job.run_dir)
    assert [step for step, line in lines.items() if line.get("spike")] == [23] and len(lines) == 30
    (entry,) = Ledger(job.run_dir).read("spike")
    assert (entry["step"], entry["samples"], entry["loss"]) == (23, list(range(176, 184)), lines[23]["loss"])
    assert re.search(r"step 23: its loss of \d+.* is a spike: .*; its batch is samples 176 to 183", job.output())


def test_a_roll_back_passes_over_the_batches_since_the_checkpoint(rolled_back):
    lines = metrics(rolled_back.run_dir)
    assert "rolled back from the loss spike of step 23 to step 20" in rolled_back.output()
    assert [lines[step]["samples"] for step in (20, 21, 30)] == [160, 200, 272]  # steps 21 to 24 had been trained
    assert not any(line.get("spike") for line in lines.values())
    (entry,) = Ledger(rolled_back.run_dir).read("rollback")
    assert (entry["from"]["number"], entry["to"]["number"]) == (160, 192)


def test_a_run_killed_after_a_roll_back_obeys_the_ledger(corpus, tmp_path, rolled_back):
    job = Job(corpus, tmp_path / "run", ROLLS_BACK, fault=f"spike_kill:0,1:{BAD}")
    assert job.ends() == [-9, -9], job.output()
    job = Job(corpus, job.run_dir, ROLLS_BACK, fault=f"spike:0,1:{BAD}")
    assert job.ends() == [0, 0], job.output()
    assert losses(job.run_dir) == losses(rolled_back.run_dir)
    assert len(Ledger(job.run_dir).read("rollback")) == 1


def test_a_run_from_an_older_checkpoint_obeys_the_ledger_where_it_comes_by(corpus, tmp_path, rolled_back):
    """The checkpoint that it was rolled back to is gone: the bad batch is passed over all the same."""
    folder = shutil.copytree(rolled_back.run_dir, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        if path.name not in ("step_00000015", "step_00000010"):
            shutil.rmtree(path)
    job = Job(corpus, folder, ROLLS_BACK, fault=f"spike:0,1:{BAD}")
    assert job.ends() == [0, 0], job.output()
    assert losses(folder) == losses(rolled_back.run_dir) and len(Ledger(folder).read("rollback")) == 1


def test_another_layout_rolls_back_to_the_same_batches(corpus, tmp_path, rolled_back):
    job = Job(corpus, tmp_path / "run", ROLLS_BACK, size=1, fault=f"spike:0:{BAD}")
    assert job.ends() == [0], job.output()
    hashes = [[line["batch_hash"] for line in metrics(j.run_dir).values()] for j in (job, rolled_back)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("steps", [23, 24])
def test_a_spike_in_the_last_steps_is_rolled_back_too(corpus, tmp_path, steps):
    """It is known only once the step after it has begun."""
    job = Job(corpus, tmp_path / "run", ROLLS_BACK, f"train.steps={steps}", size=1, fault=f"spike:0:{BAD}")
    assert job.ends() == [0], job.output()
    lines = metrics(job.run_dir)
    assert "rolled back from the loss spike of step 23 to step 20" in job.output()
    assert lines[21]["samples"] == 8 * (steps + 1) and not any(line.get("spike") for line in lines.values())


def test_a_run_stopped_at_a_spike_saves_nothing_of_it(corpus, tmp_path):
    job = Job(corpus, tmp_path / "run", ROLLS_BACK, size=1, fault=f"spike_stop:0:{BAD}")
    assert job.ends() == [75], job.output()
    assert "step 20 is saved" in job.output() and len(Ledger(job.run_dir).read("rollback")) == 1
    assert max(metrics(job.run_dir)) == 20


def test_what_is_a_spike():
    watch = SpikeWatch()
    assert [watch.see(3.0 + 0.01 * (n % 3)) for n in range(40)] == [None] * 40
    assert watch.see(3.2) is None  # above the noise, but within a tenth of the mean
    assert SpikeWatch(watch.losses).see(4.0) is not None
    assert SpikeWatch([3.0] * (SpikeWatch.LEAST - 1)).see(100.0) is None
    assert SpikeWatch([3.0] * 50).see(float("nan")) is None
    falling = SpikeWatch()
    assert [falling.see(10 * 0.97**n) for n in range(200)] == [None] * 200


def test_spikes_are_the_same_after_a_resume():
    series = [3 + 0.3 * ((7 * n) % 11) / 11 + 4 * (n == 70) for n in range(100)]
    whole, parts = SpikeWatch(), SpikeWatch()
    for loss in series[:50]:
        parts.see(loss)
    resumed = SpikeWatch(json.loads(json.dumps(list(parts.losses))))
    assert [whole.see(loss) for loss in series][50:] == [resumed.see(loss) for loss in series[50:]]


def test_a_torn_line_of_the_ledger_is_passed_over(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append({"kind": "spike", "step": 1})
    with ledger.path.open("a") as file:
        file.write('{"kind": "spike", "st')
    ledger.append({"kind": "spike", "step": 2})
    assert [entry["step"] for entry in ledger.read("spike")] == [1, 2]


def test_a_fault_is_the_same_by_kind_and_step_in_two_starts(tmp_path):
    ledger = Ledger(tmp_path)
    assert not ledger.fault("a", "lost", 7, 5, "")
    assert not ledger.fault("a", "lost", 7, 5, "")  # the same start, told twice
    assert ledger.fault("b", "lost", 7, 6, "")
    for other in (("hang", 7), ("lost", 8)):
        ledger.fault("c", "lost", 7, 5, "")
        assert not ledger.fault("d", *other, 5, "")


def test_rolling_back_needs_checkpoints(corpus, tmp_path):
    job = Job(corpus, tmp_path / "run", ROLLS_BACK, "train.checkpoint_every=0", size=1)
    assert job.ends() == [2] and "train.on_spike=rollback needs checkpoints" in job.output()

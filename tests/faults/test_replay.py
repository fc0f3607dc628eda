"""pretrain-replay: the same bits where data or model are at fault, other bits where the hardware is."""

from __future__ import annotations

import json

import pytest

from pretraining.commands.replay import judge, replay
from pretraining.run.metrics import TrainingLine
from tests.faults.runs import Job
from tests.helpers import TINY, command, metrics, train_alone


@pytest.fixture(scope="module")
def two_ranks(corpus, tmp_path_factory):
    job = Job(corpus, tmp_path_factory.mktemp("replay") / "run", "train.steps=12", fault="")
    assert job.ends() == [0, 0], job.output()
    return job.run_dir


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_on_the_run_s_own_layout_the_bits_are_the_same(corpus, two_ranks):
    before = listing(two_ranks)
    replay = Job.replaying(two_ranks, 9, size=2)
    assert replay.ends() == [0, 0], replay.output()
    said = replay.output()
    assert "step 9, replayed from the checkpoint of step 5" in said
    assert "the same bits as logged: the data or the model is at fault, not the hardware" in said
    assert said.count("loss ") >= 8 and "sample 64: train/shard-" in said and "sample 71: train/shard-" in said
    assert "gradient norm" in said and "embedding" in said
    assert listing(two_ranks) == before


def test_another_layout_is_compared_up_to_rounding(two_ranks, capsys):
    assert command("pretraining.commands.replay", f"run_dir={two_ranks}", "step=9") == 0
    said = capsys.readouterr().out
    assert "the run had 2 ranks, this replay has 1" in said


def test_losses_by_sample_and_norms_by_tensor_are_those_of_the_step(corpus, tmp_path, capsys):
    from tests.helpers import TINY, train_alone

    run_dir = tmp_path / "run"
    train_alone(*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=4")
    capsys.readouterr()
    assert command("pretraining.commands.replay", f"run_dir={run_dir}", "step=3") == 0
    said = capsys.readouterr().out.splitlines()
    assert "the same bits as logged" in said[-1] and "from the beginning" in said[0]
    losses = [float(line.split()[1]) for line in said if line.startswith("loss ") and "sample" in line]
    norms = [float(line.split()[2]) for line in said if line.startswith("gradient norm")]
    line = metrics(run_dir)[3]
    assert len(losses) == 8 and sum(losses) / 8 == pytest.approx(line["loss"], abs=1e-3)
    assert sum(n * n for n in norms) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-3)


def test_a_step_that_was_not_finite_by_the_hardware_alone_is_told_so(corpus, tmp_path, capsys):
    job = Job(corpus, tmp_path / "run", "train.steps=8", size=1, fault="nan:0:7")
    assert job.ends() == [0], job.output()
    replay = Job.replaying(job.run_dir, 7, size=1, fault="nan:0:99")
    assert replay.ends() == [0], replay.output()
    assert "other bits than logged: the hardware" in replay.output() and "loss was None, is 6." in replay.output()
    again = Job.replaying(job.run_dir, 7, size=1, fault="nan:0:7")
    assert again.ends() == [0], again.output()
    assert "the same bits as logged: the data or the model" in again.output()


def line(loss=2.0, batch_hash=5):
    return TrainingLine(
        step=3,
        loss=loss,
        grad_norm=1.0,
        lr=1.0,
        samples=1,
        unit="tokens",
        units=1,
        step_seconds=1.0,
        units_per_second=1.0,
        batch_hash=batch_hash,
        utilization={},
        parts={},
        lacking=[],
        skipped=False,
        loss_scale=None,
    )


@pytest.mark.parametrize(
    ("logged", "ranks", "said"),
    [
        (line(), 2, "the same bits"),
        (line(2.00001), 2, "other bits than logged: the hardware"),
        (line(2.00001), 1, "as logged, up to rounding"),
        (line(2.1), 1, "not as logged, beyond what another layout rounds"),
        (line(2.1), None, "an unknown number of ranks"),
        (line(batch_hash=6), 2, "another batch than logged"),
        (line(float("nan")), 1, "not as logged"),
    ],
)
def test_what_a_comparison_says(logged, ranks, said):
    assert said in judge(line(), json.loads(json.dumps(logged.as_json())), ranks, 2)


def test_settings_that_were_changed_since_are_blamed_before_the_hardware(corpus, tmp_path, capsys):
    run_dir = tmp_path / "run"
    train_alone(*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=6")
    train_alone(*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=9")
    capsys.readouterr()
    replay([f"run_dir={run_dir}", "step=5"])
    assert "settings that were changed since: train.steps was 6, is 9" in capsys.readouterr().out


def test_a_step_without_a_line(two_ranks):
    assert "was not logged" in judge(line(), None, 2, 2)


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert command("pretraining.commands.replay", f"run_dir={tmp_path}", "step=3") == 2
    assert "is not a folder that pretrain wrote" in capsys.readouterr().err

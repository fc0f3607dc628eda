"""What a run's folder says, and what happens where it or the command that meets it is not as it should be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from data_pipeline.common.json_files import read_json
from tests.helpers import ROOT, TINY, command, metrics, prepare, valid_losses


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of 8 steps with checkpoints at 4 and 8."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(corpus, run_dir) == 0
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def pretrain(corpus, run_dir, *more):
    return command(
        "pretraining.train",
        *TINY,
        f"data.path={corpus}",
        f"run_dir={run_dir}",
        "train.steps=8",
        "train.eval_every=4",
        "train.eval_batches=1",
        "train.checkpoint_every=4",
        *more,
    )


def checkpoints(run_dir):
    return sorted(f.name for f in (run_dir / "checkpoints").iterdir())


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_going_back_to_an_older_checkpoint_sets_the_newer_ones_aside(corpus, run_dir):
    older = run_dir / "checkpoints" / "step_00000004"
    assert (
        pretrain(
            corpus, run_dir, f"train.resume={older}", "train.steps=7", "train.keep_last=1", "train.checkpoint_every=1"
        )
        == 0
    )
    assert checkpoints(run_dir) == ["abandoned_step_00000008", "step_00000007"]
    assert sorted(metrics(run_dir)) == list(range(1, 8))


def test_the_same_command_again_adds_nothing(corpus, run_dir):
    before = (run_dir / "metrics.jsonl").read_text()
    assert pretrain(corpus, run_dir) == 0
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_begins_anew(corpus, run_dir):
    expected = metrics(run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "verdict.json").unlink()
    values = read_json(run_dir / "run.json")
    del values["saved"]
    (run_dir / "run.json").write_text(json.dumps(values))
    assert pretrain(corpus, run_dir) == 0
    assert [line["loss"] for line in metrics(run_dir).values()] == [line["loss"] for line in expected.values()]
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 8 + len(valid_losses(run_dir))


@pytest.mark.parametrize("version", ["of today", "without the note in run.json"])
def test_checkpoints_that_went_missing_are_told(corpus, run_dir, capsys, version):
    """Not started over: the run's lines would be lost as well."""
    lines = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "checkpoints").rename(run_dir.parent / "elsewhere")
    if version == "of today":
        (run_dir / "verdict.json").unlink()
    else:
        values = read_json(run_dir / "run.json")
        del values["saved"]
        (run_dir / "run.json").write_text(json.dumps(values))
    assert pretrain(corpus, run_dir) == 2
    assert "holds no checkpoint, though the run was saved: put back" in capsys.readouterr().err
    assert (run_dir / "metrics.jsonl").read_text() == lines
    (run_dir.parent / "elsewhere").rename(run_dir / "checkpoints")
    assert pretrain(corpus, run_dir) == 0


def test_what_was_set_aside_stays(corpus, run_dir):
    older = run_dir / "checkpoints" / "step_00000004"
    first = (run_dir / "checkpoints" / "step_00000008" / "rank_00000.safetensors").read_bytes()
    for precision in ("bf16", "fp32"):
        assert pretrain(corpus, run_dir, f"train.resume={older}", f"train.precision={precision}") == 0
        (run_dir / "run.json").write_text(json.dumps({**read_json(run_dir / "run.json"), "resumed": None}))
    assert checkpoints(run_dir) == [
        "abandoned_step_00000008",
        "abandoned_step_00000008.2",
        "step_00000004",
        "step_00000008",
    ]
    aside = run_dir / "checkpoints" / "abandoned_step_00000008"
    assert (aside / "rank_00000.safetensors").read_bytes() == first


def test_nothing_is_written_or_removed_through_a_link(corpus, run_dir, tmp_path, capsys):
    """Links where files of a run are written, and where its checkpoints lie."""
    victim = tmp_path / "victim"
    victim.write_text("stays")
    stranger = shutil.copytree(run_dir / "checkpoints" / "step_00000004", tmp_path / "stranger")
    (run_dir / "checkpoints" / "step_00000002").symlink_to(stranger)
    for name in ("loss.png", "config.yaml", "run.json", "verdict.json"):
        content = (run_dir / name).read_bytes()
        (run_dir / name).unlink()
        (tmp_path / name).write_bytes(content)
        (run_dir / name).symlink_to(tmp_path / name if name == "run.json" else victim)
    kept = (tmp_path / "run.json").read_bytes()
    assert pretrain(corpus, run_dir, "train.steps=9", "train.keep_last=1") == 0
    assert victim.read_text() == "stays" and (tmp_path / "run.json").read_bytes() == kept
    assert sorted(f.name for f in stranger.iterdir()) == ["manifest.json", "rank_00000.safetensors"]
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").symlink_to(victim)
    assert pretrain(corpus, run_dir, "train.steps=9") == 2 and victim.read_text() == "stays"
    assert "metrics.jsonl is not a plain file" in capsys.readouterr().err
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "checkpoints").rename(tmp_path / "away")
    (run_dir / "checkpoints").symlink_to(tmp_path / "away")
    before = sorted((tmp_path / "away").iterdir())
    assert pretrain(corpus, run_dir, "train.steps=12") == 2
    assert "checkpoints is a link" in capsys.readouterr().err and sorted((tmp_path / "away").iterdir()) == before
    (run_dir / "checkpoints").unlink()
    (tmp_path / "away").rename(run_dir / "checkpoints")
    shutil.rmtree(run_dir / "ranks")
    (run_dir / "ranks").symlink_to(stranger)
    assert pretrain(corpus, run_dir, "train.steps=12") == 2 and len(list(stranger.iterdir())) == 2
    assert "ranks is a link" in capsys.readouterr().err


def test_no_whole_checkpoint_left_is_an_error(corpus, run_dir, capsys):
    for folder in (run_dir / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    assert pretrain(corpus, run_dir) == 2
    assert "none of the 2 checkpoints is complete" in capsys.readouterr().err
    assert len(metrics(run_dir)) == 8


def test_a_damaged_checkpoint_changes_no_file_of_the_run(corpus, run_dir, capsys):
    checkpoint = run_dir / "checkpoints" / "step_00000004"
    flip_a_bit(checkpoint / "rank_00000.safetensors")
    files = {f: f.read_bytes() for f in run_dir.glob("*.*")}
    assert pretrain(corpus, run_dir, f"train.resume={checkpoint}", "train.steps=12") == 2
    assert "checksum differs" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in run_dir.glob("*.*")} == files


def test_auto_goes_back_beyond_damaged_checkpoints(corpus, run_dir, capsys):
    expected = metrics(run_dir)
    flip_a_bit(run_dir / "checkpoints" / "step_00000008" / "rank_00000.safetensors")
    assert pretrain(corpus, run_dir) == 0
    said = capsys.readouterr().err
    assert "skipped step_00000008" in said and "checksum differs" in said
    assert [line["loss"] for line in metrics(run_dir).values()] == [line["loss"] for line in expected.values()]
    for folder in (run_dir / "checkpoints").glob("step_*"):
        flip_a_bit(folder / "rank_00000.safetensors")
    assert pretrain(corpus, run_dir) == 2
    assert (run_dir / "checkpoints" / "step_00000004").is_dir()


def test_a_run_whose_last_save_fails_has_failed_and_can_begin_anew(corpus, tmp_path, capsys, monkeypatch):
    from pretraining.run import checkpoint

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "_write_share", full)
    assert pretrain(corpus, tmp_path / "run") == 1
    assert "the last checkpoint, of step 8, could not be saved" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "verdict.json")["exit_code"] == 1
    monkeypatch.undo()
    assert pretrain(corpus, tmp_path / "run") == 0


@pytest.mark.parametrize(
    "pattern, told", [("blocks.0.mlpp.*", "no parameter is named blocks.0.mlpp.*"), ("*", "leaves nothing to train")]
)
def test_patterns_of_frozen_parameters_that_cannot_be_meant(corpus, tmp_path, capsys, pattern, told):
    assert pretrain(corpus, tmp_path / "run", f"train.freeze=['{pattern}']") == 2
    assert told in capsys.readouterr().err


def test_a_state_that_lacks_something_is_told(corpus, run_dir, capsys):
    path = run_dir / "checkpoints" / "step_00000008" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["state"]["position"]
    path.write_text(json.dumps(manifest))
    assert pretrain(corpus, run_dir) == 2
    assert "the state in its manifest is broken: 'position' is missing" in capsys.readouterr().err


def test_a_checkpoint_whose_position_meant_another_sequence_is_refused(corpus, run_dir, capsys):
    """Before positions had a format, a window's sequences came in the order of packing. Nothing is changed."""
    for path in (run_dir / "checkpoints").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        assert manifest["state"]["position"].pop("format") == 2
        path.write_text(json.dumps(manifest))
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != "verdict.json"}
    assert pretrain(corpus, run_dir, "train.steps=12") == 2
    told = capsys.readouterr().err
    assert "step_00000008: its place in the data is of format 1" in told and "Traceback" not in told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_split_without_a_sequence_is_refused_by_name_before_training(corpus, tmp_path, capsys):
    """Documents of one token have no place for noise by themselves."""
    lines = [json.dumps({"text": character}) for character in "abcdefghijklmnopqrstuvwxyz" * 2]
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    tokenizer = f"tokenizer.path={corpus}/tokenizer/tokenizer.model"
    inputs = f"corpus.inputs=[{tmp_path}/short.jsonl]"
    assert prepare(inputs, f"output={tmp_path}/data", tokenizer, "valid_fraction=0.2", "num_workers=0") == 0
    run = (tmp_path / "data", tmp_path / "run", "model=t5_debug", "objective=span_corruption")
    assert pretrain(*run, "objective.documents=apart") == 2
    assert f"{tmp_path}/data, split train: its documents are too short" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/checkpoints"))


def test_a_checkpoint_of_another_run_is_refused(corpus, finished, tmp_path, capsys):
    assert pretrain(corpus, tmp_path / "new", f"train.resume={finished}/checkpoints/step_00000004", "train.seed=5") == 2
    assert "train.seed was 1, is 5" in capsys.readouterr().err


def test_the_same_data_by_another_path(corpus, run_dir, tmp_path):
    (tmp_path / "link").symlink_to(corpus)
    assert pretrain(tmp_path / "link", run_dir, "train.steps=9") == 0


def test_another_tokenizer_than_the_shards_were_written_with(corpus, tmp_path, capsys):
    data = shutil.copytree(corpus, tmp_path / "data")
    assert (
        prepare(
            f"corpus.inputs=[{json.__path__[0]}]",
            f"output={tmp_path / 'other'}",
            "num_workers=1",
            "tokenizer.vocab_size=360",
            "valid_fraction=0.3",
        )
        == 0
    )
    shutil.rmtree(data / "tokenizer")
    shutil.copytree(tmp_path / "other" / "tokenizer", data / "tokenizer")
    assert pretrain(data, tmp_path / "run") == 2
    assert "not the tokenizer that the shards were written with" in capsys.readouterr().err


def test_divergence_is_told_without_a_traceback(corpus, tmp_path, capsys):
    assert pretrain(corpus, tmp_path / "run", "optimizer.lr=1e30", "train.steps=40") == 1
    assert "error: the gradients of the last 20 steps" in capsys.readouterr().err
    verdict = read_json(tmp_path / "run" / "verdict.json")
    assert verdict["exit_code"] == 1 and "diverged" in verdict["reason"]
    assert valid_losses(tmp_path / "run")[4] is None


def test_a_config_error_is_in_the_verdict_too(corpus, run_dir):
    (run_dir / "verdict.json").write_text('{"exit_code": 75, "reason": "stopped by SIGTERM"}')
    assert pretrain(corpus, run_dir, "train.stepz=3") == 2
    assert "train.stepz" in read_json(run_dir / "verdict.json")["reason"]
    (run_dir / "verdict.json").unlink()
    assert pretrain(corpus, run_dir, "train.stepz=3") == 2
    assert "train.stepz" in read_json(run_dir / "verdict.json")["reason"]


def contents(run_dir):
    return {f: f.read_bytes() for f in run_dir.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.stepz=3", "train.stepz"),
        ("train.seed=5", "train.seed"),
        ("train.steps=6", "train.steps=6: the run is at step 8 already"),
        ("data.path=nowhere", "nowhere"),
        ("train.freeze=['nothing.*']", "train.freeze"),
    ],
)
def test_a_command_that_fails_to_start_touches_nothing_of_a_finished_run(corpus, run_dir, capsys, override, told):
    before = contents(run_dir)
    assert pretrain(corpus, run_dir, override) == 2
    assert told in capsys.readouterr().err
    assert contents(run_dir) == before


def interrupt_after(monkeypatch, steps):
    """The run is asked to stop once it has made so many steps."""
    from pretraining.trainer import Trainer

    original, made = Trainer.train_step, []

    def train_step(self, data, began):
        made.append(self.step)
        if len(made) == steps:
            self.stop.reason = "stopped by SIGTERM"
        return original(self, data, began)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return made


@pytest.mark.parametrize("pruned", [False, True])
def test_resume_path_counts_until_the_run_has_a_checkpoint_that_descends_from_it(
    corpus, finished, run_dir, tmp_path, monkeypatch, pruned
):
    """The same command goes on from its own newest, not from PATH again, and so does one whose PATH is gone."""
    other = tmp_path / "other"
    again = (corpus, other, f"train.resume={run_dir}/checkpoints/step_00000004", "train.checkpoint_every=0")
    with monkeypatch.context() as patch:
        assert interrupt_after(patch, 2) == [] and pretrain(*again) == 75
    assert checkpoints(other) == ["step_00000006"]
    if pruned:
        shutil.rmtree(run_dir / "checkpoints")
    with monkeypatch.context() as patch:
        made = interrupt_after(patch, 100)
        assert pretrain(*again) == 0 and made == [6, 7]
    assert checkpoints(other) == ["step_00000006", "step_00000008"]
    assert metrics(other)[8]["loss"] == metrics(finished)[8]["loss"]
    assert pretrain(*again) == 0 and checkpoints(other) == ["step_00000006", "step_00000008"]


@pytest.mark.parametrize("renamed", ["run folder", "folder of the path", "both in one", "link"])
def test_a_renamed_folder_does_not_lose_what_came_after_the_named_path(corpus, run_dir, tmp_path, renamed, monkeypatch):
    """From 4 to 6; then a folder has another name, and the command with it: it goes on from 6."""
    ours = run_dir if renamed == "both in one" else tmp_path / "ours"
    options = ("train.checkpoint_every=2", "train.keep_last=9")
    named = run_dir / "checkpoints" / "step_00000004"
    with monkeypatch.context() as patch:
        assert interrupt_after(patch, 2) == []
        assert pretrain(corpus, ours, f"train.resume={named}", *options) == 75
    if renamed in ("run folder", "both in one"):
        ours = ours.rename(tmp_path / "moved")
    if renamed == "both in one":
        named = ours / "checkpoints" / "step_00000004"
    elif renamed == "folder of the path":
        named = run_dir.rename(tmp_path / "elsewhere") / "checkpoints" / "step_00000004"
    elif renamed == "link":
        (tmp_path / "link").symlink_to(run_dir)
        named = tmp_path / "link" / "checkpoints" / "step_00000004"
    made = interrupt_after(monkeypatch, 100)
    assert pretrain(corpus, ours, f"train.resume={named}", *options) == 0 and made == [6, 7]


def test_resume_of_a_run_takes_its_newest_checkpoint_and_says_so(corpus, run_dir, tmp_path, capsys, monkeypatch):
    newest = run_dir / "checkpoints" / "step_00000008"
    again = (corpus, tmp_path / "ours", f"train.resume={run_dir}", "train.steps=12", "train.checkpoint_every=2")
    with monkeypatch.context() as patch:
        made = interrupt_after(patch, 2)
        assert pretrain(*again) == 75 and made == [8, 9]
    assert f"train.resume={run_dir}: its newest checkpoint is taken, {newest}" in capsys.readouterr().err
    made = interrupt_after(monkeypatch, 100)
    assert pretrain(*again) == 0 and made == [10, 11]  # not from the other run's again
    (run_dir / "checkpoints").rename(run_dir / "none")
    assert pretrain(corpus, tmp_path / "other", f"train.resume={run_dir}") == 2
    assert "incomplete checkpoint" in capsys.readouterr().err


def test_a_run_without_a_whole_checkpoint_is_refused_by_resume(corpus, run_dir, tmp_path, capsys):
    for folder in (run_dir / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    assert pretrain(corpus, tmp_path / "ours", f"train.resume={run_dir}") == 2
    assert f"train.resume={run_dir}: none of the run's checkpoints is whole" in capsys.readouterr().err


def test_another_resume_path_counts_again(corpus, run_dir, monkeypatch):
    """Within one folder: back to 4, on to 8, then on from there; another PATH sets what lies beyond it aside."""
    four = (corpus, run_dir, f"train.resume={run_dir}/checkpoints/step_00000004", "train.checkpoint_every=2")
    made = interrupt_after(monkeypatch, 100)
    assert pretrain(*four) == 0 and made == [4, 5, 6, 7]
    assert pretrain(*four) == 0 and len(made) == 4
    six = (corpus, run_dir, f"train.resume={run_dir}/checkpoints/step_00000006")
    assert pretrain(*six) == 0 and made[4:] == [6, 7]


def test_a_damaged_descendant_leads_back_towards_the_named_path(corpus, run_dir, tmp_path, monkeypatch):
    again = (
        corpus,
        tmp_path / "other",
        f"train.resume={run_dir}/checkpoints/step_00000004",
        "train.checkpoint_every=2",
    )
    assert pretrain(*again) == 0
    for step, expected in ((8, [6, 7]), (6, [4, 5, 6, 7])):
        for damaged in range(step, 9, 2):
            flip_a_bit(tmp_path / "other" / "checkpoints" / f"step_{damaged:08d}" / "rank_00000.safetensors")
        with monkeypatch.context() as patch:
            made = interrupt_after(patch, 100)
            assert pretrain(*again) == 0 and made == expected


def test_jobs_of_one_second_have_a_folder_each(tmp_path, monkeypatch):
    from pretraining.config import load_config
    from pretraining.run import run_dir as module

    class Frozen(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "datetime", Frozen)
    config = load_config(["data.path=x"])
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: module.make_run_dir(config), range(24)))
    assert len(set(names)) == 24 and all((tmp_path / name).is_dir() for name in names)
    assert {"runs/20260102-030405-gpt-causal_lm", "runs/20260102-030405-gpt-causal_lm.24"} <= set(names)


@pytest.mark.parametrize("given", [True, False])
def test_a_folder_that_cannot_be_written_to_is_told_before_the_model_is_built(
    corpus, tmp_path, capsys, monkeypatch, given
):
    def refuse(dir, **_):
        raise PermissionError(13, "Permission denied")  # a test that runs as root may write everywhere

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("pretraining.job.start_world", pytest.fail)
    assert pretrain(corpus, tmp_path / "run" if given else "null") == 2
    assert "cannot be written to: Permission denied; choose another run_dir" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_run_dir_that_cannot_be_made(corpus, tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    assert pretrain(corpus, tmp_path / name) == 2
    assert "cannot be created" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.yaml", "verdict.json"])
@pytest.mark.parametrize("content", [b"", b"{{{", b"5\n", b'{"st\xff\xfe'], ids=["empty", "braces", "5", "bytes"])
def test_broken_files_of_a_run(corpus, run_dir, name, content, capsys):
    """Continued where nothing that counts was lost, else one message."""
    (run_dir / name).write_bytes(content)
    code = pretrain(corpus, run_dir)
    assert code in (0, 2)
    assert code == 0 or name in capsys.readouterr().err


def test_more_warm_up_than_steps_is_a_warning(corpus, tmp_path, capsys):
    assert pretrain(corpus, tmp_path / "run", "scheduler.warmup_steps=100") == 0
    assert "scheduler.warmup_steps=100" in capsys.readouterr().err


def test_a_manifest_without_validation(corpus, tmp_path, capsys):
    data = shutil.copytree(corpus, tmp_path / "data")
    values = json.loads((data / "manifest.json").read_text())
    del values["splits"]["valid"]
    (data / "manifest.json").write_text(json.dumps(values))
    assert pretrain(data, tmp_path / "run") == 2
    assert "manifest.json is broken: splits are train, not train, valid" in capsys.readouterr().err
    del values["splits"]
    (data / "manifest.json").write_text(json.dumps(values))
    assert pretrain(data, tmp_path / "run") == 2
    assert "manifest.json is broken: 'splits' is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK=3 is no rank of WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "LOCAL_RANK=x must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE=x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "x"}, "MASTER_PORT=x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "x"}, "SLURM_NTASKS=x must be a whole number"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "2"}, "SLURM_PROCID=2 is no rank of SLURM_NTASKS=2"),
    ],
)
def test_what_a_launcher_says_is_checked(corpus, tmp_path, capsys, monkeypatch, environment, told):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", **environment}.items():
        monkeypatch.setenv(name, value)
    assert pretrain(corpus, tmp_path / "run") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, message",
    [
        ("run_dir=${nope}", "interpolations"),
        ("tracking.run_name=${oc.env:HOME}", "interpolations"),
        ("optimizer@x=adamw", "package"),
        ("+typo=1", "unknown key 'typo'"),
        ("optimizer.lr=inf", "optimizer.lr"),
        ("train.resume=Never", "no such checkpoint"),
    ],
)
def test_overrides_that_are_refused(corpus, tmp_path, capsys, override, message):
    assert pretrain(corpus, tmp_path / "run", override) == 2
    assert message in capsys.readouterr().err


def test_a_rank_that_is_no_number(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "abc")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pretrain(corpus, tmp_path / "run") == 2
    assert "RANK=abc must be a whole number" in capsys.readouterr().err


def test_an_inspection_ends_quietly_where_nobody_reads_it(corpus, tmp_path):
    """As behind `| head -1`, whether the pipe is closed while it writes or before."""
    for count in (1, 400):
        inspect = [*TINY, f"data.path={corpus}", f"run_dir={tmp_path / 'run'}", f"inspect={count}"]
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "pretraining.train", *inspect],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"") and not (tmp_path / "run").exists()


def test_a_second_ctrl_c_ends_at_once(monkeypatch, capsys):
    from pretraining import train
    from pretraining.run.signals import StopRequest

    stop, ended = StopRequest(), []
    stop._handle(signal.SIGINT, None)
    assert stop.reason == "stopped by SIGINT"
    with pytest.raises(KeyboardInterrupt):
        stop._handle(signal.SIGINT, None)

    def interrupted(stop):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "main", interrupted)
    monkeypatch.setattr(train, "end_process", ended.append)
    monkeypatch.setattr(train, "StopRequest", mock.MagicMock)  # this process goes on
    train.console()
    assert ended == [130] and "goes on from its last checkpoint" in capsys.readouterr().err


def test_a_worker_that_dies_once_training_has_ended_raises_nothing(corpus, tmp_path, capsys):
    data = shutil.copytree(corpus, tmp_path / "data")
    for shard in (data / "train").glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[2000] ^= 1
        shard.write_bytes(content)
    assert pretrain(data, tmp_path / "run", "data.num_workers=1", "train.eval_every=0") == 2
    assert "sha256" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


@pytest.mark.parametrize("version", ["of today", "before"])
def test_what_changes_the_course_of_a_run_is_told(corpus, run_dir, capsys, version):
    """A schedule, clipping, precision; nothing where they are the same; and old runs go on."""
    if version == "before":
        values = read_json(run_dir / "run.json")
        (run_dir / "run.json").write_text(json.dumps({"identity": values["identity"], "steps": 8}))
        for path in (run_dir / "checkpoints").glob("*/manifest.json"):
            manifest = json.loads(path.read_text())
            manifest["state"] = {k: v for k, v in manifest["state"].items() if k not in ("course", "skipped")}
            path.write_text(json.dumps(manifest))
    change = ("scheduler=constant", "scheduler.warmup_steps=0", "train.grad_clip=0", "train.precision=bf16")
    assert pretrain(corpus, run_dir, *change, "train.steps=9") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "warning: train.steps was 8, is 9: the learning-rate schedule is recomputed" in told
    if version == "before":
        assert len(told) == 1
    else:
        text = "\n".join(told)
        assert "scheduler.name was 'warmup_cosine', is 'constant'" in text and "train.grad_clip was 1.0, is 0.0" in text
        assert "scheduler.warmup_steps was 2, is 0" in text and "train.precision was 'fp32', is 'bf16'" in text
        assert "scheduler.min_ratio was 0.1, does not exist now" in text and len(told) == 7
    assert pretrain(corpus, run_dir, *change, "train.steps=9") == 0
    assert "was" not in [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def test_a_folder_in_the_place_of_the_verdict_is_named(corpus, tmp_path, capsys):
    (tmp_path / "run/verdict.json").mkdir(parents=True)
    assert pretrain(corpus, tmp_path / "run") == 2
    assert f"{tmp_path / 'run/verdict.json'} cannot be" in capsys.readouterr().err

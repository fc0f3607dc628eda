"""There is always a good checkpoint, whatever ends a run; and nothing that was trained is lost without a word."""

import errno
import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json
from pretraining.engines.torch import TorchEngine
from pretraining.parallel.launch import Launch
from pretraining.parallel.world import start_world
from pretraining.run import checkpoint as checkpoint_module
from pretraining.run import saving, shared_folder
from pretraining.run.checkpoint_format import newest_checkpoint
from pretraining.run.faults import NonFiniteWatch
from pretraining.run.metrics import read_metrics
from pretraining.trainer import Trainer
from tests.helpers import ROOT, TINY, command, metrics, run_world, valid_losses

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pretrain(corpus, run_dir, *more):
    """-> exit code."""
    return command("pretraining.train", *arguments(corpus, run_dir, *more))


def arguments(corpus, run_dir, *more):
    return [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.checkpoint_every=5", "train.steps=20", *more]


def steps_saved(run_dir):
    return sorted(int(f.name.removeprefix("step_")) for f in (run_dir / "checkpoints").glob("step_*"))


def losses(run_dir):
    return {step: (line["loss"], line["batch_hash"]) for step, line in metrics(run_dir).items()}


def verdict(run_dir):
    return read_json(run_dir / "verdict.json")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The undisturbed run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain(corpus, run_dir, "train.eval_every=5", "train.eval_batches=2") == 0
    return run_dir


def spoil_a_weight(monkeypatch, at_step, value=math.nan):
    """As a flipped bit does, once, after the step's update."""
    step, calls = TorchEngine.step, itertools.count(1)

    def spoiled(self, lr):
        step(self, lr)
        if next(calls) == at_step:
            next(iter(self.parameters.values())).data.view(-1)[3] = value

    monkeypatch.setattr(TorchEngine, "step", spoiled)


def test_a_diverging_run_keeps_its_good_checkpoints(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil_a_weight(patch, 12)
        assert pretrain(corpus, tmp_path / "run", "train.steps=50", "train.keep_last=2") == 1
    assert "diverged" in verdict(tmp_path / "run")["reason"]
    assert steps_saved(tmp_path / "run") == [5, 10]
    lines = metrics(tmp_path / "run")
    assert [step for step, line in lines.items() if line.get("skipped")] == list(range(13, 33)) and max(lines) == 32
    assert pretrain(corpus, tmp_path / "run", "train.steps=50", "train.keep_last=2") == 0
    assert pretrain(corpus, tmp_path / "undisturbed", "train.steps=50") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")


def test_a_learning_rate_that_is_far_too_high(corpus, tmp_path):
    more = ("optimizer.lr=1e3", "scheduler=constant", "scheduler.warmup_steps=60", "train.steps=80")
    assert pretrain(corpus, tmp_path / "run", *more) == 1
    last = max(step for step, line in metrics(tmp_path / "run").items() if not line.get("skipped"))
    saved = steps_saved(tmp_path / "run")
    assert saved and max(saved) <= last and "diverged" in verdict(tmp_path / "run")["reason"]


def test_weights_that_are_not_finite_are_not_saved(corpus, tmp_path, monkeypatch):
    """The step's gradients were: it is the save that finds it, before the next step would."""
    spoil_a_weight(monkeypatch, 10, math.inf)
    assert pretrain(corpus, tmp_path / "run") == 1
    assert steps_saved(tmp_path / "run") == [5]
    reason = verdict(tmp_path / "run")["reason"]
    assert "after step 10" in reason and "weights.token_embedding.weight" in reason and "step_00000005" in reason


def test_a_checkpoint_that_is_not_finite_is_loaded_where_it_is_asked_for(corpus, tmp_path, monkeypatch, capsys):
    """This version saves none. Nothing is trained with it, and nothing saved over it."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil_a_weight(patch, 5)
        patch.setattr(saving.CheckpointKeeper, "_require_finite", lambda *_: None)
        assert pretrain(corpus, run_dir, "train.steps=5") == 0
    assert pretrain(corpus, run_dir) == 2
    assert "holds values that are not finite: the run had diverged" in capsys.readouterr().err
    assert pretrain(corpus, run_dir, "train.steps=50", "train.load_not_finite=true") == 1
    said = capsys.readouterr().err
    assert "weights.token_embedding.weight holds values that are not finite" in said
    assert "it is loaded, as train.load_not_finite=true asks" in said
    assert "diverged" in verdict(run_dir)["reason"] and steps_saved(run_dir) == [5]
    for more, code in (((), 2), (("load_not_finite=true",), 0)):
        assert command("pretraining.commands.replay", f"run_dir={run_dir}", "step=6", *more) == code
    assert "loss nan" in " ".join(capsys.readouterr().out.split())


def spoil_losses(monkeypatch, steps):
    """The losses of these steps are infinite."""
    run = TorchEngine.run
    calls = itertools.count(1)

    def spoiled(self, batches, weights, seeds):
        factor = math.inf if next(calls) in steps else 1.0
        return run(self, batches, {term: weight * factor for term, weight in weights.items()}, seeds)

    monkeypatch.setattr(TorchEngine, "run", spoiled)


def test_a_save_that_falls_due_while_steps_are_skipped_waits(corpus, tmp_path, monkeypatch):
    spoil_losses(monkeypatch, (4, 5, 6))
    assert pretrain(corpus, tmp_path / "run", "train.steps=8") == 0
    assert steps_saved(tmp_path / "run") == [7, 8]
    assert [newest_checkpoint(tmp_path / "run" / "checkpoints").state["skipped"][k] for k in ("in_a_row", "total")] == [
        0,
        3,
    ]


def test_a_run_whose_last_steps_were_skipped_is_not_done(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil_losses(patch, (7, 8))
        assert pretrain(corpus, tmp_path / "run", "train.steps=8") == 1
    assert "the last 2 steps were skipped" in verdict(tmp_path / "run")["reason"]
    assert steps_saved(tmp_path / "run") == [5]
    assert pretrain(corpus, tmp_path / "run", "train.steps=8") == 0


def test_the_counters_go_on_after_a_resume():
    first = NonFiniteWatch()
    for step in range(1, 20):
        first.see(step, False, True, 2.0)
    second = NonFiniteWatch()
    second.resume(first.to_json())
    with pytest.raises(Exception, match="diverged"):
        second.see(20, False, True, 2.0)
    assert second.total == 20
    NonFiniteWatch().resume({})  # of a checkpoint of an earlier version


def test_only_the_few_overflows_of_fp16s_search_are_not_doubtful():
    watch = NonFiniteWatch()
    for step in range(1, watch.SEARCH + 1):
        watch.see(step, False, True, 2.0**10)
        assert not watch.is_doubtful
    watch.see(9, False, True, 2.0**9)
    assert watch.is_doubtful
    watch.see(10, True, True, 2.0**9)
    assert not watch.is_doubtful
    watch.see(11, False, False, 2.0**8)  # a loss that is not finite is no matter of the scale
    assert watch.is_doubtful


def test_the_first_overflows_of_fp16_cost_no_checkpoint(corpus, tmp_path, monkeypatch):
    """Of two skipped steps at the end, as fp16 may have when its scale has grown: saved, and nothing removed for it."""
    monkeypatch.setattr(
        NonFiniteWatch,
        "see",
        lambda self, step, finite, loss, scale, see=NonFiniteWatch.see: see(
            self, step, step not in (7, 8), True, scale and 2.0**9
        ),
    )
    more = ("train.precision=fp16", "train.steps=8", "train.checkpoint_every=3", "train.keep_last=1")
    assert pretrain(corpus, tmp_path / "run", *more) == 0
    assert steps_saved(tmp_path / "run") == [6, 8]


def test_a_data_fault_saves_the_step_before_it(corpus, whole, tmp_path):
    data = shutil.copytree(corpus, tmp_path / "data")
    shards = sorted((data / "train").glob("*.tar"))
    contents = [shard.read_bytes() for shard in shards]
    for shard, content in zip(shards, contents, strict=True):
        damaged = bytearray(content)
        middle = len(damaged) // 2
        damaged[middle : middle + 64] = bytes(64)
        shard.write_bytes(damaged)
    code = pretrain(data, tmp_path / "run", "train.steps=400", "train.checkpoint_every=0")
    assert code == 2
    done = max(metrics(tmp_path / "run"), default=0)
    assert steps_saved(tmp_path / "run") == ([done] if done else [])
    for shard, content in zip(shards, contents, strict=True):
        shard.write_bytes(content)
    assert pretrain(data, tmp_path / "run", f"train.steps={done + 2}", "train.checkpoint_every=0") == 0
    assert len(metrics(tmp_path / "run")) == done + 2


def fail_in_step(monkeypatch, at_step, error):
    train_step = Trainer.train_step

    def failing(self, data, began):
        if self.step + 1 == at_step:
            raise error
        return train_step(self, data, began)

    monkeypatch.setattr(Trainer, "train_step", failing)


@pytest.mark.parametrize("error", [InputError("a shard is damaged"), RuntimeError("out of memory")])
def test_a_save_in_flight_is_finished(corpus, tmp_path, monkeypatch, error):
    """Writing takes longer than the steps up to the error."""
    import threading

    write, failed = checkpoint_module._write_share, threading.Event()

    def slow(*arguments):
        failed.wait(5)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_write_share", slow)
        fail_in_step(patch, 8, error)
        wait = saving.CheckpointKeeper.wait
        patch.setattr(saving.CheckpointKeeper, "wait", lambda self: (failed.set(), wait(self)))
        patch.setattr(saving.CheckpointKeeper, "finish", _finish_at_once(failed))
        if isinstance(error, InputError):
            assert pretrain(corpus, tmp_path / "run") == 2
            assert steps_saved(tmp_path / "run") == [5, 7]
        else:
            with pytest.raises(RuntimeError, match="out of memory"):
                pretrain(corpus, tmp_path / "run")
            assert steps_saved(tmp_path / "run") == [5]
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") is not None


def _finish_at_once(event):
    finish = saving.CheckpointKeeper.finish

    def finishing(self, step, save):
        event.set()
        finish(self, step, save)

    return finishing


def test_a_step_is_saved_before_it_is_evaluated_which_happens_once(corpus, whole, tmp_path, monkeypatch):
    """The process ends in the midst of the evaluation of step 10; and after that of step 15."""
    evaluate = Trainer.evaluate
    options = ("train.eval_every=5", "train.eval_batches=2")
    for at_step, before in ((10, True), (15, False)):

        def ending(self, at_step=at_step, before=before):
            if self.step == at_step and before:
                raise RuntimeError("killed")
            evaluate(self)
            if self.step == at_step:
                raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "evaluate", ending)
            with pytest.raises(RuntimeError, match="killed"):
                pretrain(corpus, tmp_path / "run", *options)
        assert max(steps_saved(tmp_path / "run")) == at_step
    evaluated = []
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (evaluated.append(self.step), evaluate(self)))
    assert pretrain(corpus, tmp_path / "run", *options) == 0
    assert evaluated == [20]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20]
    assert valid_losses(tmp_path / "run") == valid_losses(whole) and losses(tmp_path / "run") == losses(whole)


def fail_to_write(monkeypatch, times):
    write, calls = checkpoint_module._write_share, itertools.count(1)

    def failing(*arguments):
        if next(calls) <= times:
            raise NO_ROOM
        return write(*arguments)

    monkeypatch.setattr(checkpoint_module, "_write_share", failing)


def failures(run_dir):
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if "save_failed" in line]


def test_a_save_that_fails_is_tried_again_soon_and_told(corpus, whole, tmp_path, monkeypatch):
    fail_to_write(monkeypatch, 3)
    assert pretrain(corpus, tmp_path / "run", "train.checkpoint_every=2", "train.keep_last=9") == 0
    told = failures(tmp_path / "run")
    assert [line["failures"] for line in told] == [1, 2, 3] and "No space left" in told[0]["save_failed"]
    assert told[-1]["step"] <= 12 and steps_saved(tmp_path / "run")[0] <= 15
    assert losses(tmp_path / "run") == losses(whole)


def test_saves_that_go_on_failing_end_the_run(corpus, tmp_path, monkeypatch):
    fail_to_write(monkeypatch, 10**6)
    assert pretrain(corpus, tmp_path / "run", "train.steps=4000") == 1
    assert max(metrics(tmp_path / "run")) < 200
    assert [line["failures"] for line in failures(tmp_path / "run")] == list(range(1, saving.MOST_FAILURES + 1))
    assert "8 checkpoints in a row could not be saved" in verdict(tmp_path / "run")["reason"]


def test_the_last_save_is_tried_again(corpus, tmp_path, monkeypatch):
    fail_to_write(monkeypatch, 2)
    assert pretrain(corpus, tmp_path / "run", "train.checkpoint_every=0", "train.steps=3") == 0
    assert steps_saved(tmp_path / "run") == [3] and len(failures(tmp_path / "run")) == 2


def test_a_failed_save_makes_room_and_never_of_the_newest(corpus, tmp_path, monkeypatch):
    """keep_last=2 on a disk that holds two."""
    write = checkpoint_module._write_share

    def limited(share, folder, name):
        if len([f for f in folder.parent.iterdir() if (f / "manifest.json").exists()]) >= 2:
            raise NO_ROOM
        return write(share, folder, name)

    monkeypatch.setattr(checkpoint_module, "_write_share", limited)
    assert pretrain(corpus, tmp_path / "run", "train.keep_last=2") == 0
    assert len(steps_saved(tmp_path / "run")) == 2 and steps_saved(tmp_path / "run")[-1] == 20
    assert {line["failures"] for line in failures(tmp_path / "run")} == {1}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_with_room_for_keep_last_checkpoints_is_enough(corpus, whole, small_disk):
    size = sum(f.stat().st_size for f in newest_checkpoint(whole / "checkpoints").folder.iterdir())
    keep = (2**21 - 2**17) // size
    more = (f"train.keep_last={keep}", "train.checkpoint_every=1")
    assert pretrain(corpus, small_disk / "run", *more) == 0
    assert len(steps_saved(small_disk / "run")) >= keep - 1 and failures(small_disk / "run")
    assert steps_saved(small_disk / "run")[-1] == 20 and losses(small_disk / "run") == losses(whole)


def prove(world, folder, other):
    try:
        shared_folder.prove_shared(world, other if world.rank else folder)
    except InputError as error:
        return str(error)
    return "shared"


def prove_quickly(world, folder, other):
    shared_folder.SECONDS_TO_APPEAR = 0.5
    return prove(world, folder, other)


def test_ranks_that_see_different_folders_are_told_at_the_start(tmp_path):
    (tmp_path / "b").mkdir()
    told = run_world(2, prove_quickly, tmp_path / "a", tmp_path / "b")
    assert all("rank 1 on" in text and "file system that all nodes share" in text for text in told)
    assert run_world(2, prove, tmp_path / "a", tmp_path / "a") == ["shared"] * 2
    assert list((tmp_path / "a").iterdir()) == list((tmp_path / "b").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_before_training(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shared_folder, "_write", lambda path: (_ for _ in ()).throw(NO_ROOM))
    assert pretrain(corpus, tmp_path / "run") == 2
    assert "checkpoints, where the run is saved: No space left" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_limit_on_files_is_a_full_disk(tmp_path, capsys):
    """A real error of the system, not a planted one."""
    from pretraining.parallel.fragments import Fragment
    from pretraining.run.checkpoint import Saver

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saver = Saver(start_world(Launch()))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        saver.save(
            [(Fragment.whole("a", (1 << 16,)), torch.ones(1 << 16))], {}, tmp_path / "checkpoints" / "step_00000001"
        )
        assert not saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be saved" in capsys.readouterr().err and list((tmp_path / "checkpoints").iterdir()) == []


def test_a_closed_pipe_does_not_end_training(corpus, tmp_path):
    """`pretrain ... | head -3`."""
    run = subprocess.Popen(
        [sys.executable, "-m", "pretraining.train", *arguments(corpus, tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stderr is not None
    for _ in range(3):
        run.stdout.readline()
    run.stdout.close()
    said = run.stderr.read()
    assert run.wait(timeout=100) == 0, said
    assert said.count("standard output is closed") == 1 and "Traceback" not in said
    assert len(metrics(tmp_path / "run")) == 20 and verdict(tmp_path / "run")["exit_code"] == 0


def test_lines_that_a_full_disk_refuses_are_written_later(corpus, tmp_path, monkeypatch, capsys):
    from pretraining.run import metrics as metrics_module

    file, calls = metrics_module.MetricsFile, itertools.count(1)

    class Refusing:
        """Writes half of what it is given, and then nothing, for a while."""

        def __init__(self, inner):
            self.inner, self.fileno, self.close = inner, inner.fileno, inner.close

        def write(self, data):
            number = next(calls)
            if 5 < number < 9:
                raise NO_ROOM
            return self.inner.write(data[: len(data) // 2] if number == 5 else data)

    def wrapped(path):
        made = file(path)
        made.file = Refusing(made.file)
        return made

    monkeypatch.setattr("pretraining.run.tracking.MetricsFile", wrapped)
    monkeypatch.setattr("pretraining.run.terminal._told", set())
    assert pretrain(corpus, tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written to (No space left") == 1


def test_wandb_that_fails_does_not_end_training(corpus, tmp_path, monkeypatch, capsys):
    class Broken:
        def log(self, values, step, commit):
            raise RuntimeError("its process is gone")

    monkeypatch.setattr("pretraining.run.weights_and_biases.start_wandb", lambda *_: Broken())
    monkeypatch.setattr("pretraining.run.terminal._told", set())
    assert pretrain(corpus, tmp_path / "run") == 0
    assert capsys.readouterr().err.count("W&B could not log (its process is gone)") == 1


def test_a_curve_that_cannot_be_drawn_is_told(corpus, tmp_path, capsys):
    (tmp_path / "run" / "loss.png").mkdir(parents=True)
    assert pretrain(corpus, tmp_path / "run") == 0
    assert "loss curve: could not be drawn" in capsys.readouterr().out

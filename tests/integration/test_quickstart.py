"""The README's first command, shrunk: the same three commands as `make quickstart`."""

import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers import ROOT, command, metrics, run_process, train_alone, valid_losses

BIN = Path(sys.executable).parent
SHORT = (
    "train.steps=4",
    "scheduler.warmup_steps=2",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "data.num_workers=0",
    "tracking.wandb=disabled",
)


def test_quickstart_shrunk(tmp_path):
    stdlib = Path(sysconfig.get_path("stdlib"))
    data = run_process(
        str(BIN / "pretrain-data"),
        f"corpus.inputs=[{stdlib}/a*.py,{stdlib}/json,{stdlib}/email]",
        "corpus.exclude=['*/test/*']",
        f"output={tmp_path / 'data'}",
        "tokenizer.vocab_size=512",
        "valid_fraction=0.05",
    )
    assert data.returncode == 0, data.stderr
    run = run_process(
        str(BIN / "pretrain"),
        "experiment=quickstart_gpt",
        f"data.path={tmp_path / 'data'}",
        f"run_dir={tmp_path / 'run'}",
        "train.steps=12",
        "train.eval_every=6",
        "train.eval_batches=1",
        "scheduler.warmup_steps=3",
        "model.max_seq_len=64",
        "train.checkpoint_every=6",
    )
    assert run.returncode == 0, run.stderr
    first, *_, last = valid_losses(tmp_path / "run").values()
    assert last < first and 12 in metrics(tmp_path / "run")
    assert f"validation loss {first:.4f} -> {last:.4f}" in run.stdout and "loss.png" in run.stdout
    shown = run_process(sys.executable, "-m", "pretraining.commands.show", f"run_dir={tmp_path / 'run'}")
    assert shown.returncode == 0 and len(shown.stdout) > 20, shown.stderr


def test_the_makefile_runs_what_is_tested_here():
    makefile = (ROOT / "Makefile").read_text()
    for part in ("pretrain-data", "experiment=quickstart_", "pretrain-show"):
        assert part in makefile


def test_a_family_that_is_none_fails_at_once():
    done = run_process("make", "--dry-run", "quickstart", "FAMILY=foo")
    assert done.returncode == 2 and "FAMILY=foo: no such family; there are gpt bert t5 vit mae" in done.stderr
    assert "experiment=quickstart_mae" in run_process("make", "--dry-run", "quickstart", "FAMILY=mae").stdout


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_families_show_what_they_learned(family, corpus, tmp_path, capsys):
    train_alone(f"experiment=quickstart_{family}", f"data.path={corpus}", f"run_dir={tmp_path / 'run'}", *SHORT)
    assert command("pretraining.commands.show", f"run_dir={tmp_path / 'run'}") == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize("family, picture", [("vit", "predictions.png"), ("mae", "reconstruction.png")])
def test_vision_families_show_pictures(family, picture, digits, tmp_path):
    train_alone(f"experiment=quickstart_{family}", f"data.path={digits}", f"run_dir={tmp_path / 'run'}", *SHORT)
    assert command("pretraining.commands.show", f"run_dir={tmp_path / 'run'}") == 0
    assert (tmp_path / "run" / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "experiment, data",
    [
        ("quickstart_gpt", "corpus"),
        ("quickstart_bert", "corpus"),
        ("quickstart_t5", "corpus"),
        ("quickstart_mae", "digits"),
    ],
)
def test_inspect_shows_what_the_model_is_fed(experiment, data, request, tmp_path, capsys, monkeypatch):
    path = request.getfixturevalue(data)
    monkeypatch.chdir(tmp_path)
    assert command("pretraining.train", f"experiment={experiment}", f"data.path={path}", "inspect=3") == 0
    assert capsys.readouterr().out.count("--- example") == 3
    assert len(list(tmp_path.glob("example_*.png"))) == (3 if data == "digits" else 0)

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from tqdm import tqdm

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json
from pretraining.config import TrackingConfig
from pretraining.run import terminal
from pretraining.run.charts import AXES, charted
from pretraining.run.metrics import (
    EvaluationLine,
    MetricsFile,
    SaveFailedLine,
    TrainingLine,
    cut_metrics,
    read_metrics,
)
from pretraining.run.run_dir import read_run_config
from pretraining.run.tracking import BAR, _briefly, _trained_briefly
from pretraining.run.weights_and_biases import Choices, check_wandb
from pretraining.train import main
from tests.helpers import ROOT, TINY, finished_weights, metrics, pretrain_process, run_process, train_alone


def overrides(corpus, run_dir, *more):
    return [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=4", *more]


def test_lines_hold_what_the_contract_names(corpus, tmp_path):
    train_alone(*overrides(corpus, tmp_path / "run", "train.eval_every=2"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "valid_loss" in line] == [0, 2, 4]
    keys = {"step", "loss", "lr", "grad_norm", "samples", "tokens", "step_seconds", "tokens_per_second", "batch_hash"}
    assert all(keys <= line.keys() and line["grad_norm"] > 0 for line in training)
    assert [line["samples"] for line in training] == [8, 16, 24, 32]
    assert (tmp_path / "run" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_torn_lines_and_lines_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    cut_metrics(path, 1)
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def training_line(**values):
    usual = {
        "step": 1,
        "loss": 2.0,
        "grad_norm": 1.0,
        "lr": 1.0,
        "samples": 1,
        "unit": "tokens",
        "units": 1,
        "step_seconds": 1.0,
        "units_per_second": 1.0,
        "batch_hash": 1,
        "utilization": {},
        "parts": {},
        "lacking": [],
        "skipped": False,
        "loss_scale": None,
    }
    return TrainingLine(**{**usual, **values})


@pytest.mark.parametrize("value", [0, 2**53, 2**53 + 1, 2**64 - 1])
def test_a_hash_survives_a_reader_whose_numbers_are_doubles(value):
    text = json.dumps(training_line(batch_hash=value).as_json())
    read = json.loads(text, parse_int=float)["batch_hash"]
    assert int(read) == value
    assert isinstance(json.loads(text)["batch_hash"], int) == (value <= 2**53)


def test_charts_have_plain_names_and_numbers_alone():
    line = training_line(batch_hash=7, lacking=["a"], parts={"a": float("nan"), "b": 1.0}, utilization={"mfu": 0.5})
    charts = charted(line, 7200.0)
    assert {"train/loss", "train/b", "speed/mfu"} <= charts.keys() and not {"train/a", "train/lacking"} & charts.keys()
    assert not any("batch_hash" in name for name in charts)
    line = EvaluationLine(3, 2.0, {"accuracy": 0.5}, [], "images", 64, None, samples=8, seen=80, flops=1e6)
    places = {"step": 3, "images": 80, "samples": 8, "hours": 2.0, "flops": 1e6}
    assert charted(line, 7200.0) == {**places, "valid/loss": 2.0, "valid/accuracy": 0.5}


def test_every_line_has_the_same_axes():
    training = charted(training_line(units=600, flops=1e6), 3600.0, parameters=300)
    evaluation = EvaluationLine(1, 2.0, {}, [], "tokens", 64, None, samples=1, seen=600, flops=1e6)
    found = [
        {key: value for key, value in charts.items() if key in AXES}
        for charts in (training, charted(evaluation, 3600.0, parameters=300))
    ]
    places = {"step": 1, "tokens": 600, "samples": 1, "hours": 1.0, "flops": 1e6, "tokens_per_parameter": 2.0}
    assert found == [places, places]
    assert training["speed/tokens_per_second_overall"] == 600 / 3600
    assert charted(SaveFailedLine(3, "full", 1), 1.0) == {}


@pytest.mark.parametrize(
    ("keys", "environment", "expected"),
    [
        ({}, {}, ("offline", "pretraining", "run", [])),
        ({}, {"WANDB_MODE": "disabled"}, ("disabled", "pretraining", "run", [])),
        ({}, {"WANDB_MODE": "dryrun", "WANDB_NAME": "mine"}, ("offline", "pretraining", "mine", [])),
        ({}, {"WANDB_DISABLED": "true"}, ("disabled", "pretraining", "run", [])),
        ({}, {"WANDB_PROJECT": "p", "WANDB_TAGS": "a,b", "WANDB_NAME": ""}, ("offline", "p", "run", ["a", "b"])),
        ({"wandb": "online", "run_name": "key"}, {}, ("online", "pretraining", "key", [])),
    ],
)
def test_what_keys_leave_open_follows_the_environment(tmp_path, keys, environment, expected):
    found = Choices.of(TrackingConfig(**keys), tmp_path / "run", environment)
    assert (found.mode, found.project, found.name, found.tags) == expected and found.notes == []


@pytest.mark.parametrize(
    ("keys", "environment", "told"),
    [
        (
            {"wandb": "offline"},
            {"WANDB_MODE": "disabled"},
            "WANDB_MODE=disabled is not obeyed: tracking.wandb=offline rules",
        ),
        ({"run_name": "a"}, {"WANDB_NAME": "b"}, "WANDB_NAME=b is not obeyed: tracking.run_name=a rules"),
        ({"wandb": "offline"}, {"WANDB_MODE": "x"}, "WANDB_MODE=x is not obeyed: tracking.wandb=offline rules"),
        ({"wandb": "offline"}, {"WANDB_DISABLED": "true"}, "WANDB_DISABLED=true is not obeyed: tracking.wandb=offline"),
        ({}, {"WANDB_RUN_ID": "x"}, "WANDB_RUN_ID=x is not read"),
    ],
)
def test_a_variable_that_does_not_count_is_told(tmp_path, keys, environment, told):
    (note,) = Choices.of(TrackingConfig(**keys), tmp_path / "run", environment).notes
    assert told in note


def test_a_variable_that_agrees_is_not_told(tmp_path):
    agreeing = {"WANDB_DISABLED": "yes", "WANDB_MODE": "disabled"}
    assert Choices.of(TrackingConfig(wandb="disabled"), tmp_path, agreeing).notes == []
    assert Choices.of(TrackingConfig(wandb="offline"), tmp_path, {"WANDB_DISABLED": "false"}).notes == []


@pytest.mark.parametrize(
    ("keys", "environment", "named"),
    [
        ({}, {"WANDB_MODE": "bogus"}, "WANDB_MODE=bogus"),
        ({}, {"WANDB_MODE": "OFFLINE"}, "WANDB_MODE=OFFLINE"),
        ({"wandb": "offline"}, {"WANDB_MODE": "bogus"}, "WANDB_MODE=bogus"),
        ({}, {"WANDB_PROJECT": "a/b"}, "WANDB_PROJECT=a/b"),
        ({"project": "a/b"}, {}, "tracking.project=a/b"),
        ({}, {"WANDB_TAGS": "x" * 80}, "WANDB_TAGS=xxx"),
        ({"tags": ["x" * 80]}, {}, "tracking.tags="),
        ({}, {"WANDB_BASE_URL": "nonsense"}, "WANDB_BASE_URL=nonsense"),
        ({}, {"WANDB_INIT_TIMEOUT": "abc"}, "WANDB_INIT_TIMEOUT=abc"),
        ({}, {"WANDB_SILENT": "perhaps"}, "WANDB_SILENT=perhaps"),
    ],
)
def test_what_wandb_would_refuse_is_refused_by_name(tmp_path, keys, environment, named):
    with pytest.raises(InputError, match=named) as caught:
        check_wandb(TrackingConfig(**keys), tmp_path, environment)
    assert "\n" not in str(caught.value)
    check_wandb(TrackingConfig(**{**keys, "wandb": "disabled"}), tmp_path, environment)  # nothing of it is read


def test_a_key_that_wandb_refuses_is_not_shown(tmp_path):
    with pytest.raises(InputError, match="WANDB_API_KEY: W&B refuses it") as caught:
        check_wandb(TrackingConfig(), tmp_path, {"WANDB_API_KEY": "secret" * 7 + " "})
    assert "secret" not in str(caught.value)


def test_what_wandb_takes_is_taken(tmp_path):
    environment = {"WANDB_PROJECT": "a", "WANDB_TAGS": "a,b", "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    check_wandb(TrackingConfig(run_name="any/name: it is"), tmp_path, {**environment, "WANDB_MODE": "dryrun"})


def test_all_that_wandb_would_refuse_is_told_before_a_run_has_a_folder(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "abc")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    arguments = overrides(corpus, tmp_path / "run", "tracking.wandb=offline", "tracking.project=a/b")
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    assert main() == 2
    said = capsys.readouterr().err
    assert "WANDB_INIT_TIMEOUT=abc" in said and "tracking.project=a/b" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_wandb_is_shown_what_follows_from_the_config(corpus, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "pretraining.run.weights_and_biases.start_wandb", lambda config, run_dir, settings: shown.append(settings)
    )
    monkeypatch.chdir(corpus.parent)
    train_alone(*overrides(corpus.name, tmp_path / "run"))
    weights = {n: t for n, t in finished_weights(tmp_path / "run").items() if n.startswith("weights.")}
    derived = {"parameters": sum(t.numel() for t in weights.values()), "world_size": 1}
    manifest = read_json(corpus / "manifest.json")
    assert shown[0]["derived"] == {**derived, "vocab_size": manifest["tokenizer"]["total_size"]}
    assert shown[0]["data"]["path"] == str(corpus) and read_run_config(tmp_path / "run").data.path == str(corpus)


def test_log_every_0_writes_no_training_lines(corpus, tmp_path):
    train_alone(*overrides(corpus, tmp_path / "run", "train.log_every=0", "train.eval_every=4", "train.eval_batches=1"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "valid_loss" in line] == [0, 4] and len(lines) == 2


def wandb_history(run_dir):
    offline = max((run_dir / "wandb").glob("offline-run-*"))
    wandb = os.path.join(os.path.dirname(sys.executable), "wandb")
    return run_process(wandb, "leet", "inspect", "--json", str(offline)).stdout


def test_wandb_offline_and_the_same_run_after_a_resume(corpus, tmp_path, capsys):
    train_alone(*overrides(corpus, tmp_path / "run", "tracking.wandb=offline"))
    identity = read_json(tmp_path / "run" / "run.json")["wandb_id"]
    history = wandb_history(tmp_path / "run")
    assert "train/loss" in history and "batch_hash" not in history
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"upload to W&B: wandb sync {os.path.relpath(folder)}" in said
    train_alone(*overrides(corpus, tmp_path / "run", "tracking.wandb=offline", "train.steps=6"))
    folders = [f.name for f in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(folders) >= 1 and all(name.endswith(identity) for name in folders)


def test_an_unreachable_server_does_not_hold_training_up(corpus, tmp_path):
    began = time.time()
    plain = pretrain_process(*overrides(corpus, tmp_path / "plain"))
    base, began = time.time() - began, time.time()
    done = pretrain_process(
        *overrides(corpus, tmp_path / "run", "tracking.wandb=online"),
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert plain.returncode == done.returncode == 0, done.stderr
    assert time.time() - began - base < 30
    assert "W&B cannot be used" in done.stderr and len(metrics(tmp_path / "run")) == 4
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_plain_lines_elsewhere(corpus, tmp_path, terminal):
    command = [sys.executable, "-m", "pretraining.train", *overrides(corpus, tmp_path / "run")]
    if not terminal:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "step 4/4" in done.stdout and "tokens/s" in done.stdout and "left" in done.stdout
        return
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    process = subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower, close_fds=True)
    os.close(follower)
    shown = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.2)[0]:
            try:
                shown += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    text = shown.decode()
    assert process.wait() == 0 and "4/4" in text
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[A", text) if "loss" in line and "/4" in line]
    assert drawn and all(re.search(r"loss \d\.\d{4}  [\d.]+k? tok/s  lr \S+  gn \S+ *$", line) for line in drawn), drawn


def test_the_longest_progress_fits_80_columns():
    line = training_line(
        loss=10.1234, units_per_second=123_456.0, lr=6.25e-4, grad_norm=0.0123456, step=999_999, units=10**12
    )
    shown = tqdm.format_meter(
        999_999,
        1_000_000,
        3600 * 99,
        ncols=80,
        bar_format=BAR,
        prefix="  ".join(_trained_briefly(line)),
        initial=900_000,
    )
    assert len(shown) <= 80 and shown.endswith("loss 10.1234  123k tok/s  lr 6.3e-04  gn 0.0123")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7.0, "7"), (456.4, "456"), (999.9, "1000"), (12345, "12.3k"), (999_900, "1000k"), (2.5e9, "2.5G")],
)
def test_rates_are_short(value, shown):
    assert _briefly(value) == shown


def test_metrics_are_valid_json_even_where_a_step_was_not_finite(corpus, tmp_path, monkeypatch, capsys):
    """A step with gradients that are not finite leaves the weights alone, is told, and the run goes on."""
    import torch

    from pretraining.objectives.text.causal_lm import CausalLM

    original, calls = CausalLM.loss, []

    def loss(self, model, batch):
        calls.append(1)
        value = original(self, model, batch)
        return {t: v * torch.inf for t, v in value.items()} if len(calls) in (5, 6) else value

    monkeypatch.setattr(CausalLM, "loss", loss)
    train_alone(*overrides(corpus, tmp_path / "run", "tracking.wandb=offline"))
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line.get("skipped", False) for line in lines] == [False, True, False, False]
    assert lines[1]["loss"] is None and lines[1]["grad_norm"] is None and lines[3]["loss"] is not None
    assert "step 2 was skipped: its loss was not finite" in capsys.readouterr().err
    shown = wandb_history(tmp_path / "run")
    assert "skipped" in shown and "e+308" not in shown and "Infinity" not in shown


@pytest.mark.parametrize("how", ["removed", "moved", "rotated", "another's"])
def test_a_metrics_file_that_goes_away_is_begun_anew(tmp_path, capsys, monkeypatch, how):
    """A descriptor would go on writing into a file without a name; what another job has put there is left alone."""
    monkeypatch.setattr(terminal, "_told", set())
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(SaveFailedLine(1, "x", 1).as_json())
    if how == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "metrics.jsonl.1")
    if how in ("rotated", "another's"):
        path.write_text('{"step": 7}\n' if how == "another's" else "")
    file.append(SaveFailedLine(2, "x", 1).as_json())
    file.append(SaveFailedLine(3, "x", 1).as_json())
    assert [line["step"] for line in read_metrics(path)] == ([7] if how == "another's" else [2, 3])
    assert capsys.readouterr().err.count("was removed") == (0 if how == "another's" else 1)
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    file.append(SaveFailedLine(4, "x", 1).as_json())
    assert not (tmp_path / "victim").exists()

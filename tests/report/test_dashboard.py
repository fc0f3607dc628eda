"""The dashboard in W&B, as it is built and would be sent; no network is asked."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from pretraining.report.dashboard import BEST, COLUMNS, CONFIG_COLUMNS, build_dashboard
from pretraining.run.charts import AXES, charted
from pretraining.run.metrics import EvaluationLine, Line, TrainingLine
from pretraining.run.run_dir import recorded_config
from tests.helpers import command

pytest.importorskip(
    "wandb_workspaces", reason="wandb-workspaces is not installed: pip install 'pretraining[dashboard]'"
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", "/nonexistent")


def built() -> str:
    """Without what is drawn by chance."""
    text = build_dashboard("team", "project")._to_model().model_dump_json(by_alias=True)
    return re.sub(r'("(?:id|__id__|refId|key|name)":\s*)"[a-z0-9]{7,12}"', r'\1"..."', text)


def logged() -> set[str]:
    """All that runs log, of text and images."""
    lines: list[Line] = []
    for unit in ("tokens", "images"):
        values = {"parts": {"accuracy": 0.5}, "lacking": [], "unit": unit, "units": 1}
        lines.append(EvaluationLine(step=1, loss=1.0, bits_per_byte=1.0, samples=1, seen=1, flops=1.0, **values))  # type: ignore[arg-type]
        training = {"step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "samples": 1, "step_seconds": 1.0}
        training |= {"units_per_second": 1.0, "batch_hash": 1, "utilization": {"tflops": 1.0, "mfu": 1.0}}
        training |= {"skipped": False, "loss_scale": 1.0, "spike": True, "rank_seconds": (1.0, 2.0), "flops": 1.0}
        more = {"data_seconds": 1.0, "training_seconds": 1.0, "peak_bytes": 1, "loss_max": 1.0}
        lines.append(TrainingLine(**training, **values, **more))  # type: ignore[arg-type]
    return {name for line in lines for name in charted(line, 1.0, 1)}


def test_it_is_built_without_a_network_and_the_same_each_time() -> None:
    assert built() == built()


def test_every_panel_draws_what_runs_log() -> None:
    text = built()
    names = set(re.findall(r'"((?:train|valid|speed|samples)/[^"]+)"', text))
    drawn = {name.removesuffix(".min") for name in names}
    pictures = {"samples/text", "samples/predictions", "samples/reconstruction"}
    assert drawn - logged() - pictures == set() and len(drawn) > 20
    axes = set(re.findall(r'"xAxis":\s*"([^"]+)"', text))
    axes.discard("_step")  # of an empty section that the package adds and that is never shown
    assert axes <= {*AXES, "config:optimizer.value.lr"} and {"step", "tokens", "hours", "flops"} <= axes
    assert BEST in text and all(column in text for column in (*COLUMNS, *CONFIG_COLUMNS))


def test_the_columns_of_the_config_are_there(tmp_path: Path) -> None:
    from pretraining.config import load_config
    from tests.helpers import TINY

    config = recorded_config(load_config([*TINY, f"data.path={tmp_path}"]))
    for column in CONFIG_COLUMNS:
        section, key = column.removeprefix("config:").split(".value.")
        assert key in config[section]


def test_without_a_key_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.commands.dashboard", "entity=team") == 1
    assert "W&B did not take the dashboard" in capsys.readouterr().err
    assert json.loads(build_dashboard("team", "project")._to_model().model_dump_json())["entity"] == "team"

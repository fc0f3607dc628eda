"""What W&B is told, as its offline copy has it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from data_pipeline.common.errors import Failure
from pretraining.config import TrackingConfig
from pretraining.run.charts import AXES, GROUPS
from pretraining.run.signals import Stopped
from pretraining.run.starts import ThisStart
from pretraining.run.tracking import RunTracker
from tests.faults.test_replay import line
from tests.helpers import run_process

HOSTILE = "</pre><script>alert(1)</script>"
SETTINGS = {"derived": {"parameters": 10}, "code": "0123", "manifest": "abcd", "cluster": {"hosts": ["a"]}}


@pytest.fixture(autouse=True)
def fresh_wandb() -> Iterator[None]:
    wandb.teardown()
    yield
    wandb.teardown()


def start(run_dir: Path, step: int | None, began: float) -> RunTracker:
    tracker = RunTracker(TrackingConfig(wandb="offline"), run_dir, step, 10, SETTINGS, ThisStart())
    tracker.clock = type(tracker.clock)(began)
    return tracker


def records(run_dir: Path, start: int = 0) -> list[dict[str, Any]]:
    """Of the start of that number."""
    folder = sorted((run_dir / "wandb").glob("offline-run-*"), key=lambda f: f.stat().st_ctime)[start]
    program = os.path.join(os.path.dirname(sys.executable), "wandb")
    return list(map(json.loads, run_process(program, "leet", "inspect", "--json", str(folder)).stdout.splitlines()))


def of(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def test_a_stopped_run_is_told_as_one_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "samples.txt").write_text(HOSTILE)
    tracker = start(tmp_path, None, 100.0)
    with pytest.raises(Stopped), tracker:
        tracker.log(line())
        tracker.show(tmp_path / "shown")
        raise Stopped("by a signal")
    found = records(tmp_path)
    defined = {metric.get("name"): metric for metric in of(found, "metric")}
    assert all(defined[axis]["options"]["hidden"] for axis in AXES)
    groups = {metric["glob_name"]: metric["step_metric"] for metric in of(found, "metric") if "glob_name" in metric}
    assert groups == {f"{group}/*": "step" for group in GROUPS}
    assert defined["valid/loss"]["step_metric"] == "step" and defined["valid/loss"]["summary"]["min"]
    config = of(found, "run")[0]["config"]["update"]
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    training, shown = (entry["item"] for entry in of(found, "history"))
    assert training["train/loss"] == 2.0 and {"step", "tokens", "samples", "hours"} <= training.keys() & shown.keys()
    assert of(found, "preempting") and of(found, "exit")[0]["exit_code"] == 75 and not of(found, "alert")
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/samples/*.html")
    assert "<script" not in page.read_text() and "&lt;script" in page.read_text()


@pytest.mark.parametrize("asked", [True, False])
def test_checkpoints_are_referred_to_by_option(tmp_path: Path, asked: bool) -> None:
    folder = tmp_path / "checkpoints" / "step_00000003"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    config = TrackingConfig(wandb="offline", checkpoints=asked)
    with RunTracker(config, tmp_path, None, 10, SETTINGS, ThisStart()) as tracker:
        tracker.saved(folder)
    found = [artifact for artifact in of(records(tmp_path), "artifact") if artifact["type"] == "model"]
    assert len(found) == asked
    if asked:
        assert "step_00000003" in found[0]["aliases"] and folder.as_uri() in json.dumps(found[0])


def test_the_halves_of_a_restarted_run_have_no_record_in_common(tmp_path: Path) -> None:
    with start(tmp_path, None, 100.0) as tracker:
        for _ in range(3):
            tracker.log(line())
    wandb.teardown()
    with pytest.raises(Failure), start(tmp_path, 3, 200.0) as tracker:
        tracker.log(line())
        raise Failure("it diverged")
    first, second = ([entry["step"]["num"] for entry in of(records(tmp_path, n), "history")] for n in (0, 1))
    assert len(first) == 3 and first == sorted(set(first)) and max(first) < min(second)
    told = [[(a["title"].split(" ", 1)[1], a["text"]) for a in of(records(tmp_path, n), "alert")] for n in (0, 1)]
    assert told == [[("is done", "after step 10")], [("was restarted", "from step 3"), ("failed", "it diverged")]]
    assert [of(records(tmp_path, n), "exit")[0].get("exit_code", 0) for n in (0, 1)] == [0, 1]

"""trackio in the place of W&B."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path

import pytest

from data_pipeline.common.errors import InputError
from pretraining.config import TrackingConfig
from pretraining.run.trackio import TrackioRun, check_trackio
from tests.faults.test_replay import line

installed = importlib.util.find_spec("trackio") is not None
needs_trackio = pytest.mark.skipif(not installed, reason="trackio is not installed: pip install 'pretraining[trackio]'")


def test_a_missing_package_is_told_before_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracking\.trackio=true needs the Python package trackio"):
        check_trackio(TrackingConfig(trackio=True))
    check_trackio(TrackingConfig())


def test_a_failure_is_told_once_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pretraining.run.terminal._told", set())
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)  # importing it fails
    run = TrackioRun(TrackingConfig(trackio=True), tmp_path, {})
    run.log(line(), 1.0)
    run.alert("a", "b", "INFO")
    run.finish(0)
    assert capsys.readouterr().err.count("trackio could not start") == 1


@needs_trackio
def test_lines_are_logged_and_a_resumed_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "samples.txt").write_text("</pre><script>")
    for _ in range(2):
        run = TrackioRun(TrackingConfig(trackio=True, project="tests"), tmp_path / "run", {"optimizer": {"lr": 0.1}})
        run.log(line(), 3600.0)
        run.show(tmp_path / "shown", 3601.0)
        run.finish(0)
        assert run.module is not None, "it failed"
    with sqlite3.connect(tmp_path / "trackio" / "tests.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({row[0] for row in rows}) == 1 and {row[1] for row in rows} == {3}
    assert any("train/loss" in str(row[2]) and '"hours"' in str(row[2]) for row in rows)

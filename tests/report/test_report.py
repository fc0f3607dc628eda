"""What the report says of runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.common.errors import InputError
from pretraining.report import page
from pretraining.report.columns import Column, extremes, means, read_columns
from pretraining.report.runs import differing, find_runs
from pretraining.run.ownership import Ownership
from tests.helpers import command
from tests.report.folders import HOSTILE, write_run


def report(*overrides: str) -> int:
    return command("pretraining.commands.report", *overrides)


def test_columns_hold_the_numbers_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    texts = [
        '{"step": 1, "loss": 2.5, "skipped": false, "batch_hash": "7"}',
        '{"step": 2, "loss": null, "skipped": true}',
        '{"step": "3", "loss": 9.0}',
        "[1, 2]",
        '{"step": 4, "loss": 1, "deep": {"a": 1}}',
        '{"step": 5, "loss": 1e999}',
        '{"step": 6, "lo',
    ]
    path.write_text("\n".join(texts))
    found = read_columns(path)
    assert found.keys() == {"loss", "skipped"}
    assert (found["loss"].steps.tolist(), found["loss"].values.tolist()) == ([1, 4], [2.5, 1.0])
    assert found["skipped"].steps.tolist() == [2]
    assert read_columns(tmp_path / "none.jsonl") == {}


def test_columns_are_the_same_however_they_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run")
    whole = read_columns(folder / "metrics.jsonl")
    monkeypatch.setattr("pretraining.report.columns.CHUNK", 7)
    for key, column in read_columns(folder / "metrics.jsonl").items():
        assert np.array_equal(column.steps, whole[key].steps) and np.array_equal(column.values, whole[key].values)


def test_a_thinned_curve_keeps_a_spike_and_its_means_are_means() -> None:
    draw = np.random.default_rng(1)
    steps = np.arange(1.0, 100_001.0)
    values = draw.normal(size=len(steps))
    values[77_777] = 99.0
    column = Column(steps, values)
    thin, mean = extremes(column, 2000), means(column, 2000)
    assert len(thin.steps) <= 2000 and (np.diff(thin.steps) > 0).all()
    assert thin.values.max() == 99.0 and thin.steps[thin.values.argmax()] == 77_778
    assert np.allclose(mean.values, values.reshape(1000, 100).mean(1)) and mean.steps[0] == 50.5
    few = Column(steps[:2000], values[:2000])
    assert extremes(few, 2000) is few and means(few, 2000) is few


@pytest.mark.parametrize(
    ("code", "status"), [(0, "done"), (75, "stopped"), (1, "failed"), (2, "failed"), (None, "died")]
)
def test_how_a_run_stands(tmp_path: Path, code: int | None, status: str) -> None:
    write_run(tmp_path / "run", exit_code=code)
    (run,) = find_runs([str(tmp_path / "run")])
    assert run.status == status
    owner = Ownership(tmp_path / "run", print, print)
    (run,) = find_runs([str(tmp_path / "run")])
    owner.release()
    assert run.status == "running"


def test_an_owner_without_a_heartbeat_is_dead(tmp_path: Path) -> None:
    write_run(tmp_path / "run", exit_code=None)
    owner = {"host": "elsewhere", "pid": 1, "job": "", "restart": "", "machine": "", "process_start": "", "started": ""}
    path = tmp_path / "run" / "owner.1.json"
    path.write_text(json.dumps(owner | {"token": "a"}))
    assert find_runs([str(tmp_path)])[0].status == "running"
    os.utime(path, (path.stat().st_mtime - 500,) * 2)
    assert find_runs([str(tmp_path)])[0].status == "died"


def test_runs_are_found_below_a_folder_and_named_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", ".hidden/run", "b/run/checkpoints/run"):
        write_run(tmp_path / name) if name != "b/run/checkpoints/run" else None
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [run.name for run in find_runs([str(tmp_path)])] == ["a/run", "b/run"]
    assert [run.name for run in find_runs([str(tmp_path / "b/run"), str(tmp_path / "b")])] == ["run"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no run's folder"):
        find_runs([str(tmp_path / "empty")])


def test_a_run_that_cannot_be_read_does_not_take_the_others_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "torn"):
        write_run(tmp_path / name)
    (tmp_path / "torn" / "config.yaml").write_text("a: [")
    assert [run.name for run in find_runs([str(tmp_path)])] == ["good"]
    assert "torn is left out: " in capsys.readouterr().err
    with pytest.raises(InputError, match="torn"):
        find_runs([str(tmp_path / "good"), str(tmp_path / "torn")])


def test_the_best_is_found_among_those_of_an_objective(tmp_path: Path) -> None:
    write_run(tmp_path / "slow", lr=1e-4)
    write_run(tmp_path / "fast", lr=1e-2)
    write_run(tmp_path / "other", objective="masked_lm", lr=1.0)
    runs = page.ranked(find_runs([str(tmp_path)]), "valid_loss")
    assert [run.name for run in runs] == ["fast", "slow", "other"]
    assert [run.name for run in page.best_runs(runs, "valid_loss")] == ["fast"]
    assert [run.name for run in page.ranked(runs, "tokens_per_second")][-1] == "other"
    assert runs[0].best("valid_loss") == (3.0, 200)  # the first of two that are the same
    assert differing(runs[:2]) == [("optimizer.lr", [1e-2, 1e-4])]


def test_restarts_lost_steps_and_goodput(tmp_path: Path) -> None:
    write_run(tmp_path / "run", restarted=200)
    runs = find_runs([str(tmp_path / "run")])
    (told,) = page.payload(runs, "valid_loss")["runs"]
    assert (told["restarts"], told["restarted"], told["lost"]) == (1, [200], 10)
    assert told["goodput"] == pytest.approx(0.1 * 300 / 60.01)  # 300 steps of 0.1 s within 60 s of the run's clock
    assert runs[0].rate() == pytest.approx(300_000 / 60.01)
    assert told["starts"][1][1:5] == ["200", "10", "without a word", "4"]


def test_the_page_holds_every_name_as_text_and_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / HOSTILE.replace("/", "\N{FRACTION SLASH}")
    write_run(folder, objective=HOSTILE)
    write_run(tmp_path / "b")
    assert report(f"run_dir={tmp_path}", f"output={tmp_path}/new/page.html") == 0
    said = capsys.readouterr().out
    assert "2 runs, 600 training lines in " in said and "page.html" in said
    text = (tmp_path / "new/page.html").read_text()
    assert "<img" not in text and text.count("</script>") == 3
    assert "\\u003c/script>" in text and "uPlot" in text
    assert not [word for word in ('http-equiv="refresh', 'src="http', 'href="http', "@import", "url(") if word in text]


def test_what_is_wrong_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(f"run_dir={tmp_path}") == 2
    write_run(tmp_path / "run")
    assert report(f"run_dir={tmp_path}", "metric=bleu") == 2
    (tmp_path / "file").write_text("")
    assert report(f"run_dir={tmp_path}", f"output={tmp_path}/file/page.html") == 2
    said = capsys.readouterr().err
    assert "is no run's folder" in said and "metric=bleu: no run has it; there are grad_norm" in said
    assert "page.html cannot be written" in said


def test_a_missing_library_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.report.library.PACKAGE", "no-such-package")
    write_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"needs the Python package no-such-package.*pip install"):
        page.write_page(find_runs([str(tmp_path)]), "valid_loss")


def test_a_run_that_has_just_begun_or_was_never_evaluated(tmp_path: Path) -> None:
    write_run(tmp_path / "new", steps=0, exit_code=None)
    (tmp_path / "new" / "metrics.jsonl").unlink()
    (tmp_path / "new" / "starts.jsonl").unlink()
    assert report(f"run_dir={tmp_path}/new") == 0
    assert (tmp_path / "new" / "report.html").is_file()


def test_numbers_that_no_run_logs_make_a_page_all_the_same(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    strange = (
        {"loss": 1e308},
        {"loss": -1e308},
        {"step_seconds": 1e308},
        {"lr": 2**70},
        {"tokens": -1},
        {"time": 1e308},
    )
    texts = [json.dumps({"step": step, **values}) for step in (-5, 0, 7, 2**40, 2**62) for values in strange]
    (folder / "metrics.jsonl").write_text("\n".join(texts))
    starts = [{"kind": "start", "time": "x", "step": 1e300, "hosts": {"a": 1}}, {"kind": "start", "seconds": None}, {}]
    (folder / "starts.jsonl").write_text("\n".join(map(json.dumps, starts)))
    (folder / "config.yaml").write_text("train: {steps: many}\nmodel: [1, 2]\n")
    assert report(f"run_dir={folder}") == 0
    (folder / "config.yaml").write_text("[1]")
    assert report(f"run_dir={folder}") == 2

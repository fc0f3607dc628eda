"""What a line of metrics.jsonl holds."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pretraining.run import metrics
from pretraining.run.metrics import (
    EvaluationLine,
    TrainingLine,
    as_written,
    cut_metrics,
    last_evaluation,
    last_line,
    read_metrics,
    step_of,
)
from tests.helpers import TINY, run_world, train_alone, train_in_world


def training_line(unit: str = "tokens", **changes: object) -> TrainingLine:
    values: dict[str, object] = {
        "step": 3,
        "loss": 2.5,
        "grad_norm": 1.5,
        "lr": 1e-3,
        "samples": 24,
        "unit": unit,
        "units": 700,
        "step_seconds": 0.5,
        "units_per_second": 480.0,
        "batch_hash": 2**64 - 1,
        "utilization": {"tflops": 1.0, "mfu": 0.4},
        "parts": {},
        "skipped": False,
        "loss_scale": None,
        "lacking": [],
    }
    return TrainingLine(**(values | changes))  # type: ignore[arg-type]


def test_what_is_not_finite_is_null() -> None:
    line = training_line(loss=math.nan, grad_norm=math.inf, parts={"a": math.nan, "b": 1.0}, skipped=True).as_json()
    assert (line["loss"], line["grad_norm"], line["a"], line["b"], line["skipped"]) == (None, None, None, 1.0, True)
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    evaluation = EvaluationLine(2, math.inf, {"a": math.nan}, [], "tokens", 70, None).as_json()
    assert evaluation == {"step": 2, "valid_loss": None, "valid_tokens": 70, "valid_a": None}


def test_goodput_is_the_share_of_the_clock_that_went_into_steps() -> None:
    values = as_written(training_line(training_seconds=30.0), 40.0)
    assert (values["time"], values["goodput"]) == (40.0, 0.75)
    assert as_written(training_line(training_seconds=30.0), 29.9)["goodput"] == 1.0  # clocks differ by a little
    assert "goodput" not in as_written(training_line(), 40.0)


def test_the_unit_names_two_keys() -> None:
    line = training_line("images").as_json()
    assert (line["images"], line["images_per_second"]) == (700, 480.0) and "tokens" not in line


@pytest.fixture(params=[7, 64, 1 << 16])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("end", ["\n", "", '\n{"step": 31, "lo', "\n\n"])
def test_cutting_from_the_end_keeps_what_reading_all_would(tmp_path: Path, blocks: None, end: str) -> None:
    draw = random.Random(1)
    steps = sorted(draw.choices(range(31), k=40))
    lines = [{"step": step, "x" * draw.randrange(1, 50): draw.random()} for step in steps]
    for to in (None, -1, 0, 3, 17, 30, 99):
        path = tmp_path / f"{to}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)) + end)
        cut_metrics(path, to)
        kept = [] if to is None else [line for line in lines if step_of(line) <= to]
        assert path.read_text() == "".join(json.dumps(line) + "\n" for line in kept)
        assert last_line(path) == (kept[-1] if kept else None)


def test_the_last_evaluation_is_found_from_the_end(tmp_path: Path, blocks: None) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (last_evaluation(path), last_line(path)) == (-1, None)
    path.write_text(
        '{"step": 4, "valid_loss": 1.0}\n{"step": 4, "note": "\\"valid_loss\\""}\n{"step": 5, "loss": 1.0}\n'
    )
    assert last_evaluation(path) == 4
    path.write_text('{"step": 5, "loss": 1.0}\n')
    assert last_evaluation(path) == -1


def test_a_million_lines_are_not_read_at_a_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    filler = "x" * 200
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.0, "filler": "{filler}"}}\n' for step in range(1_000_000))
    began = time.process_time()
    cut_metrics(path, 999_000)
    assert last_line(path) == {"step": 999_000, "loss": 1.0, "filler": filler}
    assert last_evaluation(path) == -1  # none: the whole file is searched, and no line parsed
    assert time.process_time() - began < 1.5
    assert sum(1 for _ in path.open()) == 999_001


def _two_ranks(world: Any, corpus: Path, folder: Path) -> None:
    arguments = (*TINY, f"data.path={corpus}", "train.steps=1", "train.micro_batch_size=2", "model.dropout=0")
    train_in_world(world, *arguments, "train.global_batch_size=4", f"run_dir={folder}")


def test_the_largest_loss_is_that_of_one_rank_s_own_samples(corpus: Path, tmp_path: Path) -> None:
    """Rank 0 has the first two sequences of four, all of the same length."""
    run_world(2, _two_ranks, corpus, tmp_path / "two")
    arguments = (*TINY, f"data.path={corpus}", "train.steps=1", "train.micro_batch_size=2", "model.dropout=0")
    train_alone(*arguments, "train.global_batch_size=2", f"run_dir={tmp_path}/first")
    whole, first = (
        read_metrics(tmp_path / "two" / "metrics.jsonl")[0],
        read_metrics(tmp_path / "first/metrics.jsonl")[0],
    )
    loss, own = float(str(whole["loss"])), float(str(first["loss"]))
    assert whole["loss_max"] == pytest.approx(max(own, 2 * loss - own), abs=1e-5)
    assert float(str(whole["loss_max"])) > loss and "loss_max" not in first

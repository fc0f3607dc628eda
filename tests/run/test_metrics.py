"""What a line of metrics.jsonl holds."""

from __future__ import annotations

import json
import math

from pretraining.run.metrics import EvaluationLine, TrainingLine


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


def test_the_unit_names_two_keys() -> None:
    line = training_line("images").as_json()
    assert (line["images"], line["images_per_second"]) == (700, 480.0) and "tokens" not in line

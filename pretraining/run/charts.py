"""What a line of metrics is called on a dashboard: axes that all lines share, and groups of curves."""

from __future__ import annotations

from collections.abc import Mapping

from pretraining.run.metrics import (
    EvaluationLine,
    LayersLine,
    Line,
    SaveFailedLine,
    ScoresLine,
    TrainingLine,
    Value,
    as_written,
)

Charted = dict[str, int | float]
# Every line has them, so that any curve can be drawn over any of them, and a run that goes on from an older checkpoint
# goes on in the same curve.
AXES = ("step", "tokens", "images", "samples", "hours", "flops", "tokens_per_parameter")
GROUPS = ("train", "valid", "speed", "samples", "layers")
SPEED = {  # keys of metrics.jsonl; the others of a training line are of the group train
    *("tokens_per_second", "images_per_second", "step_seconds", "tflops", "mfu", "data_wait", "goodput", "memory_gb"),
    *("slowest_rank", "slowest_rank_seconds", "median_rank_seconds"),
}
NO_CURVE = {"time", "batch_hash", "valid_tokens", "valid_images"}


def charted(line: Line, seconds: float, parameters: int | None = None) -> Charted:
    """The numbers of a line by the names of their charts, train/loss, valid/loss, speed/mfu, ..., with the axes; none
    of a save that failed. seconds: by the run's clock. parameters: of the model."""
    if isinstance(line, SaveFailedLine):
        return {}
    values = as_written(line, seconds)
    found: Charted = axes(values, parameters)
    for key, value in values.items():
        # Of what is not a finite number W&B draws its largest one; a hash makes no chart.
        if isinstance(value, int | float) and key not in AXES and key not in NO_CURVE:
            found[_name(line, key)] = value
    if isinstance(line, TrainingLine):
        found["train/skipped"] = int(line.skipped)
        if seconds > 0:  # with saves, evaluations, restarts and steps that were lost in it
            found[f"speed/{line.unit}_per_second_overall"] = line.units / seconds
    return found


def axes(values: Mapping[str, Value], parameters: int | None) -> Charted:
    """Of a line as metrics.jsonl has it."""
    found = {key: value for key, value in values.items() if key in AXES and isinstance(value, int | float)}
    seconds, tokens = values.get("time"), found.get("tokens")
    if isinstance(seconds, int | float):
        found["hours"] = seconds / 3600
    if parameters and tokens is not None:
        found["tokens_per_parameter"] = tokens / parameters
    return found


def _name(line: Line, key: str) -> str:
    if isinstance(line, EvaluationLine | ScoresLine):
        return f"valid/{key.removeprefix('valid_')}"
    if isinstance(line, LayersLine):
        return key
    return f"speed/{key}" if key in SPEED else f"train/{key}"

"""run_dir/metrics.jsonl: what its lines hold, reading and cutting it, and the curve of the losses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.common.files import write_atomically

Value = int | float | None
Values = dict[str, Value]  # one line of metrics.jsonl
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainingLine:
    """One update. `step` counts updates from 1; `samples` and `units` are totals of the run so far.

    unit: tokens or images, which names two keys. parts: the means of the terms and metrics, where there are several.
    grad_norm: before clipping; not finite where the step was skipped. loss_scale: under fp16 only.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    samples: int
    unit: str
    units: int
    step_seconds: float
    units_per_second: float
    batch_hash: int
    utilization: dict[str, float]
    parts: dict[str, float]
    skipped: bool
    loss_scale: float | None

    def as_json(self) -> Values:
        line: Values = {
            "step": self.step,
            "loss": finite(self.loss),
            "grad_norm": finite(self.grad_norm),
            "lr": self.lr,
            "samples": self.samples,
            self.unit: self.units,
            "step_seconds": self.step_seconds,
            f"{self.unit}_per_second": self.units_per_second,
            "batch_hash": self.batch_hash,
            **self.utilization,
            **{name: finite(value) for name, value in self.parts.items()},
        }
        if self.skipped:
            line["skipped"] = True
        return line if self.loss_scale is None else {**line, "loss_scale": self.loss_scale}


@dataclass(frozen=True)
class EvaluationLine:
    """Means over the validation data after `step` updates. parts: as in a training line."""

    step: int
    loss: float
    parts: dict[str, float]

    def as_json(self) -> Values:
        named = {f"valid_{name}": finite(value) for name, value in self.parts.items()}
        return {"step": self.step, "valid_loss": finite(self.loss), **named}


Line = TrainingLine | EvaluationLine


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def cut_metrics(path: Path, step: int | None) -> None:
    """Drops torn lines and those beyond `step`, the checkpoint that the run continues from (None: all)."""
    if path.exists():
        kept = [line for line in read_metrics(path) if step is not None and (line["step"] or 0) <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[Values]:
    """All whole lines."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # torn: the process was killed while writing it
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def draw_losses(run_dir: Path) -> Path:
    """Training and validation loss over the steps -> run_dir/loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run_dir / METRICS)
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    valid = [(line["step"], line["valid_loss"]) for line in lines if line.get("valid_loss") is not None]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for points, label, style in ((train, "training", "-"), (valid, "validation", "o-")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", title=run_dir.name)
    axes.grid(alpha=0.3)
    if train or valid:
        axes.legend()
    figure.savefig(run_dir / "loss.png", dpi=120)
    pyplot.close(figure)
    return run_dir / "loss.png"

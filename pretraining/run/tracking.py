"""Progress bar, metrics.jsonl and W&B behind one `log()`; only rank 0 speaks."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_pipeline.common.progress import terminal_bar
from pretraining.config import TrackingConfig
from pretraining.run.metrics import METRICS, EvaluationLine, Line, TrainingLine, cut_metrics
from pretraining.run.weights_and_biases import logged, start_wandb, sync_command


class Tracker(contextlib.AbstractContextManager["Tracker"], Protocol):
    """Where the lines of a run go. An exception that ends its `with` block is a run that failed."""

    def log(self, line: Line) -> None: ...

    def note(self, text: str) -> None:
        """Tells the user, and no file."""
        ...


class RunTracker(Tracker):
    """metrics.jsonl in the run's folder, W&B, and the progress that a user watches."""

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        start_step: int | None,
        total_steps: int,
        settings: Mapping[str, object],
    ) -> None:
        """start_step: of the checkpoint that the run goes on from; None: from the beginning. settings: what W&B shows
        as the run's config."""
        path = run_dir / METRICS
        cut_metrics(path, start_step)
        self.file = path.open("a")
        self.wandb = start_wandb(config, run_dir, settings)
        self.progress = StepProgress(start_step or 0, total_steps)

    def log(self, line: Line) -> None:
        values = line.as_json()
        self.file.write(json.dumps(values, allow_nan=False) + "\n")
        self.file.flush()
        if self.wandb is not None:
            self.wandb.log(logged(line))
        self.progress.show(line)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if failure is None else 1)
            if self.wandb.settings.mode == "offline":
                print(f"upload to W&B: {sync_command(self.wandb.dir)}")


class NullTracker(Tracker):
    """What the other ranks have."""

    def log(self, line: Line) -> None: ...

    def note(self, text: str) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class StepProgress:
    """How far along a run is: a bar on a terminal, the lines that are logged elsewhere."""

    def __init__(self, start_step: int, total_steps: int) -> None:
        self.total = total_steps
        self.bar = terminal_bar(total_steps, "step", initial=start_step)

    def show(self, line: Line) -> None:
        begin = f"step {line.step}/{self.total}  "
        if isinstance(line, EvaluationLine):
            text = begin + "  ".join(_evaluated(line))
            print(text, flush=True) if self.bar is None else self.bar.write(text)
        elif self.bar is None:
            left = _clock((self.total - line.step) * line.step_seconds)
            print(begin + "  ".join([*_trained(line), f"{left} left"]), flush=True)
        else:
            self.bar.set_postfix_str("  ".join(_trained(line)), refresh=False)
            self.bar.update(line.step - self.bar.n)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True) if self.bar is None else self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _evaluated(line: EvaluationLine) -> list[str]:
    accuracy = [f"accuracy {line.parts['accuracy']:.1%}"] if "accuracy" in line.parts else []
    bits = [] if line.bits_per_byte is None else [f"bits/byte {line.bits_per_byte:.4f}"]
    return [f"valid_loss {_loss(line.loss, line.lacking)}", *bits, *accuracy]


def _trained(line: TrainingLine) -> list[str]:
    loss = _loss(line.loss, line.lacking) + (", skipped" if line.skipped else "")
    return [f"loss {loss}", f"lr {line.lr:.2e}", f"{line.units_per_second:,.0f} {line.unit}/s"]


def _loss(value: float, lacking: Sequence[str]) -> str:
    without = f" (no targets of {', '.join(lacking)})" if lacking else ""
    if math.isfinite(value):
        return f"{value:.4f}{without}"
    return f"none{without}" if lacking else "not finite"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

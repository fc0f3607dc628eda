"""Progress bar, metrics.jsonl and W&B behind one `log()`; only rank 0 speaks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import read_json_if_there
from data_pipeline.common.progress import terminal_bar
from pretraining.config import TrackingConfig
from pretraining.run.metrics import METRICS, EvaluationLine, Line, TrainingLine, cut_metrics


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
            kind = "valid" if isinstance(line, EvaluationLine) else "train"
            # Of what is not a finite number W&B draws its largest one.
            self.wandb.log({f"{kind}/{key}": value for key, value in values.items() if value is not None})
        self.progress.show(line)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if failure is None else 1)


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
    return [f"valid_loss {_loss(line.loss)}", *accuracy]


def _trained(line: TrainingLine) -> list[str]:
    loss = _loss(line.loss) + (", skipped" if line.skipped else "")
    return [f"loss {loss}", f"lr {line.lr:.2e}", f"{line.units_per_second:,.0f} {line.unit}/s"]


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not finite"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def start_wandb(config: TrackingConfig, run_dir: Path, settings: Mapping[str, object]) -> Any:
    """A W&B run, or None where disabled. The id is kept in run.json, so that a resume continues the same run."""
    if config.wandb == "disabled":
        return None
    values = read_json_if_there(run_dir / "run.json")
    values.setdefault("wandb_id", secrets.token_hex(4))
    write_atomically(run_dir / "run.json", json.dumps(values))
    options = {
        "project": config.project,
        "name": config.run_name or run_dir.name,
        "tags": config.tags or None,
        "dir": str(run_dir),
        "id": values["wandb_id"],
        "resume": "allow",
        "config": settings,
    }
    run = _init_wandb(config.wandb, options)
    run.define_metric("train/step")
    run.define_metric("valid/step")
    run.define_metric("train/*", step_metric="train/step")
    run.define_metric("valid/*", step_metric="valid/step")
    return run


def _init_wandb(mode: Literal["online", "offline"], options: dict[str, Any]) -> Any:
    """Falls back to offline within 30 s where the server cannot be reached."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own telemetry waits for a silent server at exit
    import wandb

    limits: dict[str, Any] = {
        "init_timeout": 15,
        "finish_timeout": 20,
        "x_transaction_log_flush_interval": 2,
        "console": "off",
        "silent": True,
    }
    error: Any = None if mode == "offline" else _unreachable(wandb.setup().settings.base_url)
    if error is None:
        try:
            return wandb.init(mode=mode, settings=wandb.Settings(**limits), **options)
        except wandb.errors.Error as failure:  # no answer, no key, a wrong key
            error = failure
            wandb.teardown()
    print(f"warning: W&B cannot be used ({error}); logging offline: `wandb sync` uploads it later", file=sys.stderr)
    return wandb.init(mode="offline", settings=wandb.Settings(**limits), **options)


def _unreachable(url: str, timeout_seconds: float = 5.0) -> OSError | None:
    """Why no connection to the server can be made; None where one can, or where a proxy would make it."""
    address = urllib.parse.urlsplit(url)
    if address.scheme in urllib.request.getproxies():
        return None
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout_seconds).close()
    except OSError as error:
        return error
    return None

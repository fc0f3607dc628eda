"""Progress bar, metrics.jsonl and W&B behind one `log()`; only rank 0 speaks."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import read_json_if_there
from data_pipeline.common.progress import terminal_bar

Line = dict[str, Any]


class Tracker:
    """`log(line)` takes a training line or an evaluation line (see the README for their keys)."""

    def __init__(self, config: Any, run_dir: Path, start_step: int | None, total_steps: int, settings: Line) -> None:
        """start_step: of the checkpoint that the run goes on from; None: from the beginning."""
        self.path = run_dir / "metrics.jsonl"
        cut_metrics(self.path, start_step)
        self.file = self.path.open("a")
        self.wandb = start_wandb(config, run_dir, settings)
        self.progress = StepProgress(start_step or 0, total_steps)

    def log(self, line: Line) -> None:
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        if self.wandb is not None:
            kind = "valid" if "valid_loss" in line else "train"
            self.wandb.log({f"{kind}/{key}": value for key, value in line.items()})
        self.progress.show(line)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if failure is None else 1)


class NullTracker(contextlib.nullcontext):
    """What the other ranks have."""

    def __enter__(self) -> NullTracker:
        return self

    def log(self, line: Line) -> None: ...


class StepProgress:
    """How far along a run is: a bar on a terminal, the lines that are logged elsewhere."""

    def __init__(self, start_step: int, total_steps: int) -> None:
        self.total = total_steps
        self.bar = terminal_bar(initial=start_step, total=total_steps, unit="step", dynamic_ncols=True)

    def show(self, line: Line) -> None:
        text = f"step {line['step']}/{self.total}  " + "  ".join(_shown(line, self.total))
        if self.bar is None:
            print(text, flush=True)
        elif "valid_loss" in line:
            self.bar.write(text)
        else:
            self.bar.set_postfix_str("  ".join(_shown(line, None)), refresh=False)
            self.bar.update(line["step"] - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _shown(line: Line, total: int | None) -> list[str]:
    if "valid_loss" in line:
        accuracy = [f"accuracy {line['valid_accuracy']:.1%}"] if "valid_accuracy" in line else []
        loss = "not finite" if line["valid_loss"] is None else f"{line['valid_loss']:.4f}"
        return [f"valid_loss {loss}", *accuracy]
    loss = "not finite, skipped" if line["loss"] is None else f"{line['loss']:.4f}"
    shown = [f"loss {loss}", f"lr {line['lr']:.2e}", f"{_rate(line)}"]
    if total is not None:
        shown.append(f"{_clock((total - line['step']) * line['step_seconds'])} left")
    return shown


def _rate(line: Line) -> str:
    if "images_per_second" in line:
        return f"{line['images_per_second']:,.0f} images/s"
    return f"{line['tokens_per_second']:,.0f} tokens/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def cut_metrics(path: Path, step: int | None) -> None:
    """Drops torn lines and those beyond `step`, the checkpoint that the run continues from (None: all)."""
    if path.exists():
        kept = [line for line in read_metrics(path) if step is not None and line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[Line]:
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


def start_wandb(config: Any, run_dir: Path, settings: Line) -> Any:
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


def _init_wandb(mode: Any, options: Line) -> Any:
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


def draw_losses(run_dir: Path) -> Path:
    """run_dir/loss.png: training and validation loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run_dir / "metrics.jsonl")
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

"""trackio: a dashboard on this machine, without an account. What it lacks of W&B stands in docs/users.md."""

from __future__ import annotations

import contextlib
import html
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from data_pipeline.common.errors import InputError
from pretraining.config import TrackingConfig
from pretraining.run.charts import Charted, charted
from pretraining.run.metrics import Line
from pretraining.run.terminal import warn_once
from pretraining.run.weights_and_biases import TEXT, parameters_of, run_id


def check_trackio(config: TrackingConfig) -> None:
    """Raises InputError where it is asked for and not installed."""
    if config.trackio and importlib.util.find_spec("trackio") is None:
        raise InputError("tracking.trackio=true needs the Python package trackio: pip install 'pretraining[trackio]'")


class TrackioRun:
    """A run in trackio, as WandbRun is one in W&B. Its own failures are told once and end it, never training."""

    def __init__(self, config: TrackingConfig, run_dir: Path, settings: Mapping[str, object]) -> None:
        self.module: Any = None
        self.parameters, self.step = parameters_of(settings), 0
        self.axes: Charted = {}
        with self._told("start"):
            import trackio

            # Runs are known by their names alone: the id makes that of a resumed run its own
            name = f"{config.run_name or run_dir.name}-{run_id(run_dir)}"
            project = config.project or "pretraining"
            trackio.init(project, name, config=dict(settings), resume="allow", auto_log_cpu=False, embed=False)
            self.module = trackio

    def log(self, line: Line, seconds: float) -> None:
        values = charted(line, seconds, self.parameters)
        if values:
            self.step = line.step
            self.axes = {key: value for key, value in values.items() if "/" not in key}
            self._log(values)

    def show(self, folder: Path, seconds: float) -> None:
        if self.module is None:
            return
        with self._told("show samples"):
            found: dict[str, object] = {}
            for path in sorted(folder.iterdir()):
                if path.suffix == ".png":
                    found[f"samples/{path.stem}"] = self.module.Image(str(path))
                elif path.name == TEXT:
                    text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
                    found["samples/text"] = self.module.Html(f'<pre style="white-space: pre-wrap">{text}</pre>')
            self._log({**self.axes, **found})

    def saved(self, checkpoint: Path) -> None: ...

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None:
        if self.module is not None:
            with self._told("alert"):
                self.module.alert(title, text, level=self.module.AlertLevel[level])

    def finish(self, exit_code: int) -> None:
        if self.module is not None:
            with self._told("finish"):
                self.module.finish()

    def _log(self, values: Mapping[str, object]) -> None:
        if self.module is not None:
            with self._told("log"):  # "step" is a name of its own
                self.module.log({key: value for key, value in values.items() if key != "step"}, step=self.step)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, a database that is locked: it raises what it likes
            self.module = None
            warn_once(
                "trackio",
                f"trackio could not {what} ({error}): training goes on without it; metrics.jsonl has all lines",
            )

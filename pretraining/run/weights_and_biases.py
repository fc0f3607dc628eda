"""Weights & Biases: the settings that keys and its environment variables give, starting a run, what it is shown."""

from __future__ import annotations

import contextlib
import html
import json
import os
import secrets
import shlex
import socket
import time
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_pipeline.common.compose import raise_problems
from data_pipeline.common.errors import EXIT_REQUEUE, InputError
from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import read_json_if_there
from pretraining.config import TrackingConfig
from pretraining.run.charts import AXES, GROUPS, Charted, charted
from pretraining.run.metrics import Line
from pretraining.run.terminal import tell, warn, warn_once

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {  # what WANDB_MODE may say
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# How long it may hold training up: with what it takes by itself, less than 30 s in all
INIT_SECONDS, FINISH_SECONDS = 10.0, 15.0
UNWRITTEN_SECONDS = 10.0  # a line is written by then: five of its process's intervals
MOST_RECENT = 1000  # lines
LONGEST_ALERT = 1000  # characters
TEXT = "samples.txt"  # of the files of an evaluation's samples
NOT_READ = {  # ours follow from run_dir, so that a resume continues the same run
    "WANDB_DIR": "run_dir",
    "WANDB_RUN_ID": "run_dir/run.json",
    "WANDB_RESUME": "train.resume",
}


@dataclass(frozen=True)
class Choices:
    """What keys leave open is taken from the environment, then by default. notes: what to report of it.

    `of` raises InputError for a WANDB_MODE that is none, where it decides."""

    mode: Mode
    project: str
    name: str
    tags: list[str]
    notes: list[str]

    @classmethod
    def of(cls, config: TrackingConfig, run_dir: Path, environment: Mapping[str, str]) -> Choices:
        notes: list[str] = []
        given = {name: value for name, value in environment.items() if name.startswith("WANDB_") and value}
        _tell_conflicts(config, given, notes)
        mode = config.wandb or _mode_of(given) or "offline"
        if mode != "disabled":
            notes += [
                f"{name}={given[name]} is not read: {key} rules" for name, key in NOT_READ.items() if name in given
            ]
        return cls(
            mode,
            config.project or given.get("WANDB_PROJECT", "pretraining"),
            config.run_name or given.get("WANDB_NAME", run_dir.name),
            config.tags or [tag for tag in given.get("WANDB_TAGS", "").split(",") if tag],
            notes,
        )


def _tell_conflicts(config: TrackingConfig, given: Mapping[str, str], notes: list[str]) -> None:
    values = {
        "WANDB_MODE": ("tracking.wandb", config.wandb),
        "WANDB_DISABLED": ("tracking.wandb", config.wandb),
        "WANDB_PROJECT": ("tracking.project", config.project),
        "WANDB_NAME": ("tracking.run_name", config.run_name),
        "WANDB_TAGS": ("tracking.tags", ",".join(config.tags) or None),
    }
    stated: dict[str, str | None] = {**given, "WANDB_DISABLED": "disabled" if _is_disabled(given) else None}
    stated["WANDB_MODE"] = MODES.get(given.get("WANDB_MODE", ""), given.get("WANDB_MODE"))
    for name, (key, value) in values.items():
        if value is not None and stated.get(name) not in (None, value):
            notes.append(f"{name}={given[name]} is not obeyed: {key}={value} rules")


def _is_disabled(given: Mapping[str, str]) -> bool:
    return given.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")


def _mode_of(given: Mapping[str, str]) -> Mode | None:
    if _is_disabled(given):
        return "disabled"
    stated = given.get("WANDB_MODE")
    if stated is None:
        return None
    if stated not in MODES:
        raise InputError(f"WANDB_MODE={stated}: it is one of {', '.join(MODES)}, in lower case")
    return MODES[stated]


def check_wandb(config: TrackingConfig, run_dir: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Raises InputError that names each variable and key that W&B itself would refuse when the run starts."""
    if Choices.of(config, run_dir, environment).mode == "disabled":
        return
    given = {name: value for name, value in environment.items() if name.startswith("WANDB_")}
    keys: dict[str, dict[str, object]] = {
        "tracking.project": {"project": config.project},
        "tracking.run_name": {"run_name": config.run_name},
        "tracking.tags": {"run_tags": config.tags},
    }
    stated = {key: field for key, field in keys.items() if any(field.values())}
    if not given and not stated:
        return  # importing wandb takes seconds
    wandb = _import_wandb()
    wrong: list[str] = []
    for name, value in given.items():
        with _collected(wrong, name if _is_secret(name) else f"{name}={value}"):
            wandb.Settings().update_from_env_vars({name: value})
    for key, field in stated.items():
        with _collected(wrong, f"{key}={next(iter(field.values()))}"):
            wandb.Settings(**field)
    raise_problems(wrong)


def _is_secret(variable: str) -> bool:
    return any(word in variable for word in ("KEY", "TOKEN", "HEADER", "PROXY"))


@contextlib.contextmanager
def _collected(wrong: list[str], what: str) -> Iterator[None]:
    import pydantic

    try:
        yield
    except pydantic.ValidationError as error:
        wrong.append(f"{what}: W&B refuses it ({error.errors()[0]['msg'].removeprefix('Value error, ')})")
    except Exception as error:  # some of its checks raise its own UsageError
        wrong.append(f"{what}: W&B refuses it ({error})")


class WandbRun:
    """A W&B run, or nothing where it is disabled. Its own failures are told once and end it, never training.

    A SIGTERM of Slurm goes to every process of a job, and ends W&B's with the lines that it has not written yet:
    `finish` starts another one, which gets them.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, settings: Mapping[str, object]) -> None:
        self.run: Any = None
        self.parameters, self.refers = parameters_of(settings), config.checkpoints
        self.axes: Charted = {}
        self.counter = 0
        self.recent: deque[tuple[float, int, Charted]] = deque(maxlen=MOST_RECENT)
        self.is_lost = False
        self.start = partial(start_wandb, config, run_dir, settings)
        with self._told("start"):
            self.run = self.start()

    def log(self, line: Line, seconds: float = 0.0) -> None:
        """seconds: by the run's clock."""
        values = charted(line, seconds, self.parameters)
        self.axes = {key: value for key, value in values.items() if key in AXES} or self.axes
        self._log(values, seconds)

    def show(self, folder: Path, seconds: float) -> None:
        """A text and pictures, beside what was logged last."""
        if self.run is not None:
            with self._told("show samples"):
                self._log({**self.axes, **media(folder)}, seconds)

    def saved(self, checkpoint: Path) -> None:
        """By option: a reference to the folder, of which no byte is read or sent."""
        if self.run is not None and self.refers:
            with self._told("refer to a checkpoint"):
                artifact = _import_wandb().Artifact(f"checkpoint-{self.run.id}", type="model")
                artifact.add_reference(checkpoint.resolve().as_uri(), checksum=False)
                self.run.log_artifact(artifact, aliases=[checkpoint.name])

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None:
        if self.run is not None:
            with self._told("alert"):
                self.run.alert(title=title, text=text[:LONGEST_ALERT], level=level)

    def _log(self, values: Mapping[str, object], seconds: float) -> None:
        if (self.run is None and not self.is_lost) or not values:
            return
        # W&B's own counter: by the clock, so that the halves of a run that was restarted offline have none in common
        self.counter = max(self.counter + 1, int(1000 * seconds))
        self._remember({key: value for key, value in values.items() if isinstance(value, int | float)})
        if self.run is not None:
            with self._told("log"):
                try:
                    self.run.log(dict(values), step=self.counter, commit=True)
                except ConnectionError:
                    self.is_lost = True
                    raise

    def _remember(self, values: Charted) -> None:
        now = time.monotonic()
        self.recent.append((now, self.counter, values))
        while not self.is_lost and self.recent[0][0] < now - UNWRITTEN_SECONDS:
            self.recent.popleft()

    def finish(self, exit_code: int) -> None:
        """exit_code: 75 is a run that will go on, not one that failed."""
        if self.run is None and not self.is_lost:
            return
        with self._told("finish"):
            try:
                self._finish(exit_code)
            except Exception:
                self._start_again()
                self._finish(exit_code)

    def _start_again(self) -> None:
        with contextlib.suppress(Exception):  # it tells its process, which is gone
            _import_wandb().teardown()
        self.run = self.start()
        for _, counter, values in self.recent:
            self.run.log(values, step=counter, commit=True)

    def _finish(self, exit_code: int) -> None:
        if self.run is None:
            raise ConnectionError("W&B's process has ended")
        began = time.monotonic()
        if exit_code == EXIT_REQUEUE:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)
        if self.run.settings.mode == "offline":
            tell(f"upload to W&B: {sync_command(self.run.dir)}")
        elif time.monotonic() - began >= FINISH_SECONDS or _unreachable(self.run.settings.base_url):
            tell(f"W&B did not take all of the run; upload it by: {sync_command(self.run.dir)}")

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its process may have died, its disk be full: it raises what it likes
            self.run = None
            warn_once(
                "W&B", f"W&B could not {what} ({error}): training goes on without it; metrics.jsonl has all lines"
            )


def parameters_of(settings: Mapping[str, object]) -> int | None:
    """How many the model has, as the settings of a run say."""
    derived = settings.get("derived")
    found = derived.get("parameters") if isinstance(derived, dict) else None
    return found if isinstance(found, int) else None


def media(folder: Path) -> dict[str, object]:
    """The samples of an evaluation as W&B shows them: text as HTML, which makes no artifact, and whole pictures."""
    wandb = _import_wandb()
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".png":
            found[f"samples/{path.stem}"] = wandb.Image(str(path))
        elif path.name == TEXT:
            text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
            found["samples/text"] = wandb.Html(f'<pre style="white-space: pre-wrap">{text}</pre>', inject=False)
    return found


def define_axes(run: Any) -> None:
    """Curves are drawn over our own steps. W&B makes a chart of each axis, too, unless it is hidden."""
    for axis in AXES:
        run.define_metric(axis, hidden=True)
    for group in GROUPS:
        run.define_metric(f"{group}/*", step_metric="step")
    run.define_metric("valid/loss", step_metric="step", summary="min,last")  # valid/loss.min is the best


def sync_command(folder: str) -> str:
    """What uploads an offline run. folder: of its files."""
    return f"wandb sync {shlex.quote(os.path.relpath(Path(folder).parent))}"


def run_id(run_dir: Path) -> str:
    """The one in run.json, made if it has none yet."""
    values = read_json_if_there(run_dir / "run.json")
    values.setdefault("wandb_id", secrets.token_hex(4))
    write_atomically(run_dir / "run.json", json.dumps(values))
    return str(values["wandb_id"])


def start_wandb(config: TrackingConfig, run_dir: Path, settings: Mapping[str, object]) -> Any:
    """A W&B run, or None where disabled. The id is kept in run.json, so that a resume continues the same run."""
    choices = Choices.of(config, run_dir, os.environ)
    for note in choices.notes:
        warn(f"warning: {note}")
    if choices.mode == "disabled":
        return None
    options = {
        "project": choices.project,
        "name": choices.name,
        "tags": choices.tags or None,
        "dir": str(run_dir),
        "id": run_id(run_dir),
        "resume": "allow",
        "config": settings,
    }
    run = _init_wandb(choices.mode, options)
    define_axes(run)
    return run


def _init_wandb(mode: Literal["online", "offline"], options: dict[str, Any]) -> Any:
    """Falls back to offline within 30 s where the server cannot be reached."""
    wandb = _import_wandb()
    limits: dict[str, Any] = {
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
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
    warn(f"warning: W&B cannot be used ({error}); logging offline: `wandb sync` uploads it later")
    return wandb.init(mode="offline", settings=wandb.Settings(**limits), **options)


def _import_wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own telemetry waits for a silent server at exit
    import wandb

    return wandb


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

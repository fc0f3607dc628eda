"""Progress bar, metrics.jsonl and W&B behind one `log()`; only rank 0 speaks."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from data_pipeline.common.progress import terminal_bar
from pretraining.config import TrackingConfig
from pretraining.run.metrics import (
    METRICS,
    EvaluationLine,
    LayersLine,
    Line,
    MetricsFile,
    SaveFailedLine,
    ScoresLine,
    TrainingLine,
    as_written,
    cut_metrics,
    last_evaluation,
)
from pretraining.run.signals import Stopped
from pretraining.run.starts import ThisStart, note_end, note_start, read_starts
from pretraining.run.terminal import tell, warn, warn_once
from pretraining.run.trackio import TrackioRun, check_trackio
from pretraining.run.weights_and_biases import WandbRun, check_wandb

if TYPE_CHECKING:
    from tqdm import tqdm


BAR = "{n_fmt}/{total_fmt} {bar:8} {remaining}  {desc}"  # of the progress on a terminal


class Tracker(contextlib.AbstractContextManager["Tracker"], Protocol):
    """Where the lines of a run go. An exception that ends its `with` block is a run that failed.

    evaluated_step: of the last evaluation that was logged; -1 where none was.
    """

    evaluated_step: int

    def log(self, line: Line) -> None: ...

    def show(self, folder: Path) -> None:
        """The samples of the evaluation that was logged last, which lie in a folder: a text, and pictures."""
        ...

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is whole on the disk."""
        ...

    def note(self, text: str) -> None:
        """Tells the user, and no file."""
        ...

    def rewind(self, step: int) -> None:
        """The lines beyond a step are of updates that were taken back."""
        ...


def check_tracking(config: TrackingConfig, run_dir: Path) -> None:
    """Raises InputError for what W&B would refuse, or a package that is missing."""
    check_wandb(config, run_dir)
    check_trackio(config)


class Dashboard(Protocol):
    """Where a run is shown besides its folder. It tells its own failures, and raises none."""

    def log(self, line: Line, seconds: float) -> None:
        """seconds: by the run's clock."""
        ...

    def show(self, folder: Path, seconds: float) -> None:
        """The samples of an evaluation."""
        ...

    def saved(self, checkpoint: Path) -> None: ...

    def alert(self, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class RunTracker(Tracker):
    """metrics.jsonl in the run's folder, W&B, and the progress that a user watches. What cannot be written of it is
    told once, and training goes on."""

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        start_step: int | None,
        total_steps: int,
        settings: Mapping[str, object],
        start: ThisStart,
    ) -> None:
        """start_step: of the checkpoint that the run goes on from; None: from the beginning. settings: what W&B shows
        as the run's config. start: what is noted of this one."""
        self.run_dir, self.path = run_dir, run_dir / METRICS
        self.clock = note_start(run_dir, start, start_step or 0)
        cut_metrics(self.path, start_step)
        self.evaluated_step = last_evaluation(self.path)
        self.file = MetricsFile(self.path)
        self.boards: list[Dashboard] = [WandbRun(config, run_dir, settings)]
        if config.trackio:
            self.boards.append(TrackioRun(config, run_dir, settings))
        if len(read_starts(run_dir)) > 1:
            self._alert("was restarted", f"from step {start_step or 0}", "WARN")
        self.progress = StepProgress(start_step or 0, total_steps)

    def log(self, line: Line) -> None:
        seconds = self.clock.seconds()
        self.file.append(as_written(line, seconds))
        for board in self.boards:
            board.log(line, seconds)
        self.progress.show(line)
        if isinstance(line, EvaluationLine):
            self.evaluated_step = line.step

    def show(self, folder: Path) -> None:
        for board in self.boards:
            board.show(folder, self.clock.seconds())

    def saved(self, checkpoint: Path) -> None:
        for board in self.boards:
            board.saved(checkpoint)

    def _alert(self, what: str, text: str, level: Literal["INFO", "WARN", "ERROR"]) -> None:
        for board in self.boards:
            board.alert(f"{self.run_dir.name} {what}", text, level)

    def note(self, text: str) -> None:
        self.progress.note(text)

    def rewind(self, step: int) -> None:
        self.file.close()
        cut_metrics(self.path, step)
        self.evaluated_step = last_evaluation(self.path)
        self.file = MetricsFile(self.path)

    def __exit__(self, failure: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.progress.close()
        self.file.close()
        note_end(self.run_dir, self.clock)
        if error is None:
            self._alert("is done", f"after step {self.progress.total}", "INFO")
        elif not isinstance(error, Stopped):
            self._alert("failed", str(error) or repr(error), "ERROR")
        code = EXIT_DONE if error is None else EXIT_REQUEUE if isinstance(error, Stopped) else EXIT_FAILED
        for board in self.boards:
            board.finish(code)


class NullTracker(Tracker):
    """What the other ranks have."""

    evaluated_step = -1

    def log(self, line: Line) -> None: ...

    def show(self, folder: Path) -> None: ...

    def saved(self, checkpoint: Path) -> None: ...

    def note(self, text: str) -> None: ...

    def rewind(self, step: int) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class StepProgress:
    """How far along a run is: a bar on a terminal, the lines that are logged elsewhere."""

    def __init__(self, start_step: int, total_steps: int) -> None:
        self.total = total_steps
        self.bar = terminal_bar(total_steps, "step", initial=start_step, layout=BAR)

    def show(self, line: Line) -> None:
        begin = f"step {line.step}/{self.total}  "
        if isinstance(line, SaveFailedLine | LayersLine):  # the saver has told why; layers are for charts
            return
        if isinstance(line, EvaluationLine):
            self._tell(begin + "  ".join(_evaluated(line)))
        elif isinstance(line, ScoresLine):
            self._tell(begin + "  ".join(f"valid_{name} {value:.2f}" for name, value in line.scores.items()))
        elif self.bar is None:
            left = _clock((self.total - line.step) * line.step_seconds)
            tell(begin + "  ".join([*_trained(line), f"{left} left"]))
        else:
            with self._bar_or_nothing() as bar:
                bar.set_description_str("  ".join(_trained_briefly(line)), refresh=False)
                bar.update(line.step - bar.n)

    def note(self, text: str) -> None:
        if self.bar is None:
            warn(text)
        else:
            with self._bar_or_nothing() as bar:
                bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            with self._bar_or_nothing() as bar:
                bar.close()

    def _tell(self, text: str) -> None:
        if self.bar is None:
            tell(text)
        else:
            with self._bar_or_nothing() as bar:
                bar.write(text)

    @contextlib.contextmanager
    def _bar_or_nothing(self) -> Iterator[tqdm[NoReturn]]:
        """Its terminal may have been closed: then lines are told, to whom it may concern."""
        assert self.bar is not None
        try:
            yield self.bar
        except OSError as error:
            self.bar = None
            warn_once("terminal", f"the terminal cannot be written to ({error.strerror or error}): training goes on")


def _evaluated(line: EvaluationLine) -> list[str]:
    accuracy = [f"accuracy {line.parts['accuracy']:.1%}"] if "accuracy" in line.parts else []
    bits = [] if line.bits_per_byte is None else [f"bits/byte {line.bits_per_byte:.4f}"]
    return [f"valid_loss {_loss(line.loss, line.lacking)}", *bits, *accuracy]


def _trained(line: TrainingLine) -> list[str]:
    loss = _loss(line.loss, line.lacking) + (", skipped" if line.skipped else "")
    return [f"loss {loss}", f"lr {line.lr:.2e}", f"{line.units_per_second:,.0f} {line.unit}/s"]


def _trained_briefly(line: TrainingLine) -> list[str]:
    """In 46 columns, so that 80 hold it and a bar; what matters most first, since a narrower terminal cuts the end."""
    loss = _loss(line.loss, line.lacking) + (", skipped" if line.skipped else "")
    rate = f"{_briefly(line.units_per_second)} {'tok' if line.unit == 'tokens' else 'img'}/s"
    norm = f"gn {line.grad_norm:.3g}" if math.isfinite(line.grad_norm) else "gn none"
    return [f"loss {loss}", rate, f"lr {line.lr:.1e}", norm]


def _briefly(value: float) -> str:
    """12.3k, 456, 7.89M."""
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= s), (1.0, ""))
    return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"


def _loss(value: float, lacking: Sequence[str]) -> str:
    without = f" (no targets of {', '.join(lacking)})" if lacking else ""
    if math.isfinite(value):
        return f"{value:.4f}{without}"
    return f"none{without}" if lacking else "not finite"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

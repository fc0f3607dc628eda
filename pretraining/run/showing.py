"""run_dir/samples/step_N: at each evaluation what the model makes of the same validation samples: text and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from data_pipeline.common.files import write_atomically
from data_pipeline.loader import Sample
from pretraining.objectives.base import Demonstration, Objective
from pretraining.run.metrics import ScoresLine
from pretraining.run.terminal import warn_once
from pretraining.run.tracking import Tracker
from pretraining.run.weights_and_biases import TEXT

if TYPE_CHECKING:
    from pretraining.models.base import Model

SAMPLES = "samples"
LONGEST = 128  # tokens that a model writes by itself: other ranks wait meanwhile


class HoldsModel(Protocol):
    """An engine."""

    def whole_model(self) -> Model | None:
        """The model, where this rank holds all of its weights."""
        ...


class Showing:
    """Rank 0 shows; nothing is shown where it holds a part of the weights only (ZeRO 3, tensor parallelism).

    samples: makes so many of the first validation samples, called once. shown: how many of them are.
    """

    def __init__(
        self,
        engine: HoldsModel,
        objective: Objective,
        samples: Callable[[int], Sequence[Sample]],
        shown: int,
        run_dir: Path,
        tracker: Tracker,
        seed: int,
    ) -> None:
        self.engine, self.objective, self.make_samples = engine, objective.for_evaluation(), samples
        self.folder, self.tracker, self.seed, self.shown = run_dir / SAMPLES, tracker, seed, shown
        self.samples: Sequence[Sample] | None = None

    def show(self, step: int) -> None:
        """Writes and logs what the model does after `step` updates. Leaves the model in training mode."""
        model, scored = self.engine.whole_model(), self.objective.scored_samples
        if model is None:
            if scored:
                warn_once("scores", "no rank holds the whole model, to score what it writes: pretrain-show scores it")
            return
        if self.samples is None:
            self.samples = self.make_samples(max(self.shown, scored))
        if self.shown:
            self._show(model, step, self.samples[: self.shown])
        if scored and step and (scores := self.objective.scores(model, self.samples)):
            self.tracker.log(ScoresLine(step, scores))
        model.train()

    def _show(self, model: Model, step: int, samples: Sequence[Sample]) -> None:
        folder = self.folder / f"step_{step:08d}"
        try:
            make_plain_folder(folder)
            text = self.objective.demonstrate(model, Demonstration(samples, folder, self.seed, LONGEST))
            write_atomically(folder / TEXT, text.encode(errors="replace"))
        except OSError as error:  # a full disk, a link in the folder's place
            warn_once(SAMPLES, f"{self.folder} cannot be written to ({error.strerror or error}): training goes on")
        self.tracker.show(folder)


def make_plain_folder(folder: Path) -> None:
    """With its parent. Raises OSError where one of them is a link: nothing is written through it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder.parent, folder):
        if path.is_symlink():
            raise OSError(f"{path} is a link")

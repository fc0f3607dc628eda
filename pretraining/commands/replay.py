"""`pretrain-replay run_dir=DIR step=N`: runs one step of a run again, from the nearest checkpoint before it."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config, raise_problems
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PathText, Positive, configclass
from data_pipeline.common.schema import get, has
from data_pipeline.common.yaml_files import read_yaml
from pretraining.run.metrics import METRICS, Line, TrainingLine, Value, read_metrics, step_of
from pretraining.run.tracking import NullTracker

if TYPE_CHECKING:
    from pretraining.build import Inputs
    from pretraining.config import RunConfig
    from pretraining.parallel.world import World
    from pretraining.run.checkpoint_format import Checkpoint
    from pretraining.trainer import Trainer

ABOUT = """pretrain-replay: runs one step of a run again and compares it with what was logged.

The samples of the step, the loss of each, and the norm of each tensor's gradient are printed. Under the launcher, the
number of ranks and the machine of the run, equal bits say that the data or the model is at fault, other bits that the
hardware is. The run's folder is only read.

Example:
  pretrain-replay run_dir=runs/first step=1234
  torchrun --nproc-per-node 8 -m pretraining.commands.replay run_dir=runs/first step=1234
"""
COMPARED = ("batch_hash", "loss", "grad_norm")
ROUNDING = 1e-4  # relative: what another layout may add up to within the steps since a checkpoint


@configclass
class ReplayConfig:
    """Run one step of a run again and compare it with what was logged.

    run_dir: the run.
    step: which step, as metrics.jsonl counts them.
    load_not_finite: start from a checkpoint that holds NaN or infinities, too.
    modules: your own, which the run imports too; config.yaml alone cannot make anything be imported.
    """

    run_dir: PathText
    step: Positive
    load_not_finite: bool = False
    modules: list[str] = field(default_factory=list)


@dataclass
class Replayed:
    """losses: of each sample of the global batch, before the update and without dropout. norms: of each tensor's
    gradient."""

    line: TrainingLine
    origins: list[str]
    losses: list[float]
    norms: dict[str, float]


@dataclass
class LastLine(NullTracker):
    """Keeps what would be logged."""

    lines: list[TrainingLine] = field(default_factory=list)

    def log(self, line: Line) -> None:
        if isinstance(line, TrainingLine):
            self.lines.append(line)


def main() -> int:
    return run_command(replay, ABOUT, "replay", ReplayConfig)


def replay(overrides: list[str]) -> None:
    from pretraining.build import inputs_at
    from pretraining.parallel.launch import read_launch
    from pretraining.parallel.world import start_world, stop_world
    from pretraining.run.run_dir import read_run_config

    config = compose_config("replay", overrides, ReplayConfig)
    run_dir, launch = Path(config.run_dir), read_launch()
    run = read_run_config(run_dir, config.modules)
    train = replace(run.train, log_every=1, on_spike="log", load_not_finite=config.load_not_finite)
    run = replace(run, train=train)
    raise_problems(run.problems(launch.size, {}))
    inputs = inputs_at(run, checkpoint_before(run_dir, config.step))
    world = start_world(launch, run.engine.tensor_parallel)
    with tempfile.TemporaryDirectory() as folder:
        tracker = LastLine()
        trainer = _trainer(run, inputs, world, Path(folder), run_dir, tracker)
        began = trainer.step
        replayed = _replay(trainer, tracker, config.step)
    if world.is_main:
        print(f"step {config.step}, replayed from {f'the checkpoint of step {began}' if began else 'the beginning'}")
        print(describe(replayed))
        changes = course_changes(run_dir, run)
        print(judge(replayed.line, _logged(run_dir, config.step), _ranks(run_dir), world.size, changes))
    stop_world()


def checkpoint_before(run_dir: Path, step: int) -> Checkpoint | None:
    """The nearest whole one; None: from the beginning."""
    from pretraining.run.checkpoint_format import checkpoint_folders, open_checkpoint, step_of_folder

    for folder in reversed(checkpoint_folders(run_dir / "checkpoints")):
        if step_of_folder(folder) < step:
            try:
                return open_checkpoint(folder)
            except InputError as error:
                print(f"skipped {folder.name}: {error}", file=sys.stderr)
    return None


def _trainer(run: RunConfig, inputs: Inputs, world: World, folder: Path, run_dir: Path, tracker: LastLine) -> Trainer:
    """folder: a temporary one, where a trainer may write."""
    from data_pipeline.common.files import read_bytes
    from pretraining.build import build_recorded
    from pretraining.run.ledger import LEDGER, Ledger
    from pretraining.run.phases import Phases
    from pretraining.run.signals import StopRequest

    if Ledger(run_dir).path.exists():  # it says which batches were passed over
        (folder / LEDGER).write_bytes(read_bytes(Ledger(run_dir).path, links=False))
    return build_recorded(run, inputs, world, folder, StopRequest(), Phases(), lambda _: tracker)


def _replay(trainer: Trainer, tracker: LastLine, step: int) -> Replayed:
    steps = trainer.steps()
    while trainer.step < step - 1:
        trainer.train_step(next(steps), 0.0)
    data, start = next(steps), trainer.position
    losses = _losses_by_sample(trainer)
    norms: dict[str, float] = {}
    optimizer = trainer.engine.optimizer
    read = optimizer.read_gradients

    def read_and_measure() -> None:
        read()
        norms.update(optimizer.gradient_norms())

    optimizer.read_gradients = read_and_measure
    trainer.train_step(data, 0.0)
    trainer.report()
    steps.close()
    origins = [
        f"sample {number}: " + ", ".join(f"{o.shard} {o.block}/{o.document} [{o.start}:{o.stop}]" for o in found)
        for number, found in trainer.feeds.origins(start, trainer.train.global_batch_size)
    ]
    return Replayed(tracker.lines[-1], origins, losses, norms)


def _losses_by_sample(trainer: Trainer) -> list[float]:
    """Of the global batch that comes next, in the order of its samples. A collective of all ranks."""
    import torch

    from pretraining.parallel.host import host_sum

    share, objective, feeds = trainer.feeds.share, trainer.objective, trainer.feeds
    losses = [0.0] * trainer.train.global_batch_size
    for micro_batch in range(share.micro_batches):
        first = share.first_sequence(micro_batch)
        for number in range(first, first + share.micro_batch_size):
            sample = feeds.sample(trainer.position, number)
            batch = {name: torch.from_numpy(array) for name, array in objective.collate([sample]).items()}
            sums, counts = trainer.engine.evaluate(batch), objective.counts([sample])
            losses[number] = sum(
                weight * float(sums[term]) / counts[term] for term, weight in objective.terms.items() if counts[term]
            )
    return host_sum(trainer.world, losses)


def describe(replayed: Replayed) -> str:
    rows = [f"loss {loss:8.4f}  {origin}" for loss, origin in zip(replayed.losses, replayed.origins, strict=True)]
    norms = [f"gradient norm {norm:10.4g}  {name}" for name, norm in replayed.norms.items()]
    line = replayed.line.as_json()
    return "\n".join([*rows, *norms, ", ".join(f"{key} {line[key]}" for key in COMPARED)])


def course_changes(run_dir: Path, run: RunConfig) -> list[str]:
    """What was changed along the way of what decides a run's numbers: its earlier configs are kept beside this one."""
    from pretraining.config import course

    now, changes = course(run), dict[str, None]()
    for path in sorted(run_dir.glob("config.[0-9]*.yaml")):
        before = read_yaml(path)
        for key, value in now.items():
            if has(before, key) and get(before, key) != value:
                changes[f"{key} was {get(before, key)}, is {value}"] = None
    return list(changes)


def judge(
    line: TrainingLine,
    logged: Mapping[str, Value] | None,
    ranks: int | None,
    ranks_now: int,
    changes: Sequence[str] = (),
) -> str:
    """What the comparison with the logged line says. ranks: of the run; None where that is not known. changes: of the
    run's settings along its way."""
    if logged is None:
        return f"step {line.step} was not logged: replay it twice, and compare the two: other bits say hardware"
    now = line.as_json()
    other = [f"{key} was {logged.get(key)}, is {now[key]}" for key in COMPARED if logged.get(key) != now[key]]
    if not other:
        return "the same bits as logged: the data or the model is at fault, not the hardware"
    if now["batch_hash"] != logged.get("batch_hash"):
        drawn = [change for change in changes if change.startswith("data.")]
        if drawn:
            return f"another batch than logged, as a mixture drew otherwise then: {'; '.join([*drawn, *other])}"
        return (
            f"another batch than logged: the data or this package has changed, or the host's memory: {'; '.join(other)}"
        )
    if changes:
        return (
            f"not as logged, which may come of settings that were changed since: {'; '.join(changes)}. The replay is "
            f"by those of now, and says nothing of the hardware: {'; '.join(other)}"
        )
    if ranks == ranks_now:
        return f"other bits than logged: the hardware, unless versions, threads or device differ: {'; '.join(other)}"
    layout = f"the run had {ranks or 'an unknown number of'} ranks, this replay has {ranks_now}"
    if all(_is_near(now[key], logged.get(key)) for key in ("loss", "grad_norm")):
        return f"as logged, up to rounding ({layout}): the data or the model is at fault, not the hardware"
    return f"not as logged, beyond what another layout rounds ({layout}): the hardware: {'; '.join(other)}"


def _is_near(one: Value, other: Value) -> bool:
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return one == other
    return math.isclose(one, other, rel_tol=ROUNDING)


def _logged(run_dir: Path, step: int) -> Mapping[str, Value] | None:
    path = run_dir / METRICS
    lines = read_metrics(path) if path.exists() else []
    return next((line for line in reversed(lines) if step_of(line) == step and "loss" in line), None)


def _ranks(run_dir: Path) -> int | None:
    """How many ranks the run last had."""
    from data_pipeline.common.json_files import read_json_if_there
    from pretraining.run.watchdog import FOLDER

    found = read_json_if_there(run_dir / FOLDER / "rank_00000.json").get("ranks")
    return found if isinstance(found, int) else None


if __name__ == "__main__":
    sys.exit(main())

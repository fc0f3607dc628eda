"""One rank's part in a job: it meets the others, checks its inputs with them, trains, and says how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from data_pipeline.common.errors import EXIT_DONE, EXIT_REQUEUE, Failure, InputError
from pretraining.build import Inputs, build, read_inputs
from pretraining.config import RunConfig, load_config
from pretraining.parallel.host import broadcast_text, raise_on_all_ranks, run_on_all_ranks
from pretraining.parallel.launch import Launch
from pretraining.parallel.lost import LostPeer, lost_peer
from pretraining.parallel.meeting import Meeting, meet
from pretraining.parallel.world import World, require_own_devices, start_world
from pretraining.run.agreement import code_facts, config_facts, require_same
from pretraining.run.metrics import METRICS, draw_losses, points, read_metrics
from pretraining.run.ownership import LostOwnership, Ownership
from pretraining.run.rates import rate_lines
from pretraining.run.run_dir import make_run_dir, stopped_run_dir
from pretraining.run.signals import Stopped, StopRequest
from pretraining.run.terminal import tell, warn
from pretraining.run.tracking import check_tracking
from pretraining.run.verdict import Verdict
from pretraining.run.watchdog import Watchdog

LAST_WORDS_SECONDS = 30.0  # in which a rank whose command is wrong looks for the others, to tell them
VERDICT_SECONDS = 3.0  # in which rank 0 has written its verdict, if it lives


@dataclass
class Job:
    """launch, stop, verdict: who this process is, what may end it, and where that is told. began: in epoch seconds."""

    launch: Launch
    stop: StopRequest
    verdict: Verdict
    began: float = field(default_factory=time.time)
    meeting: Meeting = field(default_factory=Meeting)
    owner: Ownership | None = None

    def run(self, overrides: list[str]) -> int:
        """Trains as these Hydra overrides say -> exit code. Raises InputError, on all ranks, and Failure."""
        self.stop.on_end = self._end_early
        try:
            return self._train(self._compose(overrides))
        except LostOwnership:
            self.verdict.run_dir = None  # it is another job's
            raise
        except Exception as error:
            reason = lost_peer(error)
            if reason is None:
                self.meeting.note_end(str(error) or repr(error))
                raise
            return self._end_without_peer(reason)
        finally:
            if self.owner is not None:
                self.owner.release()

    def _compose(self, overrides: list[str]) -> RunConfig:
        """And meets the other ranks. One whose command alone is wrong tells the others, who would wait for it."""
        try:
            config = load_config(overrides, self.launch.size)
        except InputError as error:
            if self.launch.size > 1:
                with suppress(LostPeer):
                    raise_on_all_ranks(meet(self.launch, LAST_WORDS_SECONDS), str(error))
            raise
        self.stop.grace_seconds = config.train.timeout_seconds
        self.meeting = meet(self.launch, config.train.timeout_seconds)
        raise_on_all_ranks(self.meeting, None)
        return config

    def _train(self, config: RunConfig) -> int:
        require_same(self.meeting, config_facts(config) | code_facts(config.modules))
        config = self._continued(config)
        inputs = read_inputs(config, self.meeting, partial(self._own, config.run_dir) if config.run_dir else _nothing)
        if config.inspect:
            self.verdict.run_dir = (
                None  # to look is no run: nothing is said of it, nor where the reader of a pipe leaves
            )
            if self.meeting.is_main:
                print(examples(config, inputs))
            return EXIT_DONE
        check = partial(check_tracking, config.tracking, Path(config.run_dir or "run"))
        run_on_all_ranks(self.meeting, check if self.meeting.is_main else _nothing)
        require_own_devices(self.launch, self.meeting)
        world = start_world(self.launch, config.engine.tensor_parallel, self.meeting)
        run_dir = self.verdict.run_dir = self._agree_on_run_dir(config)
        try:
            run(config, inputs, world, run_dir, self.stop, self.verdict.begin, self.owner, self.began)
        except Stopped as stopped:
            reason = self.stop.reason or "another rank was asked to stop"
            if world.is_main:
                warn(f"{reason}: {stopped}. The same command goes on there (run_dir={run_dir})")
            return self.verdict.write(EXIT_REQUEUE, reason)
        return self.verdict.write(EXIT_DONE, "done")

    def _continued(self, config: RunConfig) -> RunConfig:
        """Where no run_dir is named: with that of a run of this config which was stopped, if there is one."""
        found = broadcast_text(self.meeting, (self.meeting.is_main and stopped_run_dir(config)) or "")
        if not found:
            return config
        if self.meeting.is_main:
            print(f"run_dir={found} is continued: a stopped run of this config; train.resume=never starts a new one")
        self.verdict.run_dir = Path(found)
        return replace(config, run_dir=found)

    def _agree_on_run_dir(self, config: RunConfig) -> Path:
        """The run's folder, on every rank; rank 0 makes one where none is named. Raises InputError on all ranks."""
        made = run_on_all_ranks(self.meeting, partial(self._make_run_dir, config) if self.meeting.is_main else _none)
        return Path(broadcast_text(self.meeting, made or ""))

    def _make_run_dir(self, config: RunConfig) -> str:
        if config.run_dir:
            return config.run_dir
        made = make_run_dir(config)
        self._own(made)
        return made

    def _own(self, run_dir: str) -> None:
        self.owner = Ownership(Path(run_dir), lambda text: warn(f"warning: {text}"), self.stop.ask)
        self.verdict.owned = True

    def _end_without_peer(self, reason: str) -> int:
        """-> exit code; Raises Failure where another rank left word that it failed by itself, and LostOwnership."""
        if _is_taken(self.owner):  # this process was stopped, and woke up when another job had gone on
            told = f"run_dir={self.verdict.run_dir} is another job's by now: this one ends"
            self.verdict.run_dir = None
            raise LostOwnership(told)
        ends = self.meeting.ends()
        if ends:
            raise Failure("; ".join(f"rank {rank} failed: {text}" for rank, text in sorted(ends.items())))
        told = f"another rank is gone, or gave no answer: {reason}"
        warn(f"rank {self.launch.rank}: {told}. The same command goes on from the newest checkpoint")
        if self.launch.rank > 0:
            time.sleep(VERDICT_SECONDS)
            return self.verdict.write_if_none(EXIT_REQUEUE, told, fault=True)
        return self.verdict.write(EXIT_REQUEUE, told, fault=True)

    def _end_early(self, code: int, reason: str) -> None:
        """Before the process ends without the main thread."""
        self.verdict.write(code, reason)
        if self.owner is not None:
            self.owner.release()


def _is_taken(owner: Ownership | None) -> bool:
    """Whether this rank knows that another job has the folder."""
    with suppress(OSError):  # the disk may be away for a while
        return owner is not None and owner.taken_over() is not None
    return False


def _nothing() -> None:
    pass


def _none() -> None:
    return None


def run(
    config: RunConfig,
    inputs: Inputs,
    world: World,
    run_dir: Path,
    stop: StopRequest,
    begin: Callable[[], None] = _nothing,
    owner: Ownership | None = None,
    began: float | None = None,
) -> None:
    """Builds everything and trains. Raises InputError, Failure, or Stopped once a signal was obeyed.

    begin: called once all inputs have proved good, before the first step. owner: of run_dir, on rank 0. began: this
    start, in epoch seconds.
    """
    warmup_steps = config.scheduler.warmup(config.train.steps)
    if world.is_main and warmup_steps >= config.train.steps:
        print(
            f"warning: the learning rate warms up over all of train.steps={config.train.steps}: "
            f"scheduler.warmup_steps={warmup_steps}",
            file=sys.stderr,
        )
    train, release = config.train, _nothing if owner is None else owner.release
    taken = partial(_is_taken, owner)
    with Watchdog(run_dir, world, train.watchdog_seconds, train.timeout_seconds, release, taken) as watchdog:
        trainer = build(config, inputs, world, run_dir, stop, watchdog.phases, owner, began)
        watchdog.start_step = trainer.step
        begin()
        if world.is_main:
            tell("\n".join([*rate_lines(config), *inputs.data.mixture_lines()]))
        with trainer.record.tracker:
            trainer.fit()
    if world.is_main:
        _print_result(run_dir)


def examples(config: RunConfig, inputs: Inputs) -> str:
    """The first `config.inspect` training samples, readable; pictures are saved and named."""
    from pretraining.objectives.image.views import write_picture
    from pretraining.objectives.samples import first_samples

    objective = inputs.objective
    shown = []
    for number, sample in enumerate(first_samples(inputs.training, objective, config.inspect)):
        text, picture = objective.describe(sample), objective.picture(sample)
        if picture is not None:
            name = f"example_{number}.png"
            write_picture(picture, Path(name))
            text += f"\n{name}"
        shown.append(f"--- example {number}\n{text}")
    return "\n".join(shown)


def _print_result(run_dir: Path) -> None:
    valid: list[float] = []
    try:
        picture = f"loss curve: {draw_losses(run_dir)}"
        valid = [loss for _, loss in points(read_metrics(run_dir / METRICS), "valid_loss")]
    except (OSError, InputError) as error:  # the run is done anyway
        picture = f"loss curve: could not be drawn ({error})"
    if valid:
        change = f" ({100 * (valid[-1] / valid[0] - 1):+.1f}%)" if valid[0] else ""
        tell(f"validation loss {valid[0]:.4f} -> {valid[-1]:.4f}{change}")
    tell(f"{picture}\nrun folder: {run_dir}")

"""`pretrain`: compose the config, check the inputs, build, fit."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from data_pipeline.common.command import run_command
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from pretraining.build import Inputs, build, read_inputs
from pretraining.config import RunConfig, load_config
from pretraining.parallel.host import broadcast_text, run_on_all_ranks
from pretraining.parallel.launch import read_launch
from pretraining.parallel.world import World, start_world
from pretraining.run.faults import Stopped, StopRequest
from pretraining.run.metrics import METRICS, draw_losses, points, read_metrics
from pretraining.run.process import end_process, expect_workers_to_end
from pretraining.run.rates import rate_lines
from pretraining.run.run_dir import make_run_dir, named_run_dir
from pretraining.run.terminal import tell, warn
from pretraining.run.verdict import Verdict
from pretraining.run.watchdog import Watchdog
from pretraining.synonyms import SYNONYMS

EXIT_INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
EXAMPLE = """pretrain: trains a model on data that pretrain-data prepared.

Example:
  pretrain model=gpt2_small objective=causal_lm data.path=DIR optimizer.lr=6e-4 train.steps=1000 run_dir=runs/first
  torchrun --nproc-per-node 2 -m pretraining.train model=gpt2_small engine=deepspeed engine.zero_stage=2 data.path=DIR
"""


def console() -> NoReturn:
    """The command itself: an exception ends this process too, whatever workers and threads it leaves behind."""
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = EXIT_FAILED
    except KeyboardInterrupt:  # a second Ctrl-C
        print("ended at once: the run goes on from its last checkpoint with the same command", file=sys.stderr)
        code = EXIT_INTERRUPTED
    end_process(code)


def main() -> int:
    return run_command(pretrain, EXAMPLE, "pretrain", RunConfig, SYNONYMS)


def pretrain(overrides: list[str]) -> int:
    """Trains as these Hydra overrides say -> exit code."""
    stop = StopRequest().install()  # before torch is imported
    launch = read_launch()
    stop.announces = launch.rank == 0
    with Verdict(launch.rank, named_run_dir(overrides)) as verdict:
        config = load_config(overrides, launch.size)
        inputs = read_inputs(config)
        if config.inspect:
            verdict.run_dir = None  # to look is no run: nothing is said of it, nor where the reader of a pipe leaves
            if launch.rank == 0:
                print(examples(config, inputs))
            return EXIT_DONE
        world = start_world(launch, config.engine.tensor_parallel)
        run_dir = verdict.run_dir = agree_on_run_dir(config, world)
        try:
            run(config, inputs, world, run_dir, stop, verdict.begin)
        except Stopped as stopped:
            reason = stop.reason or "another rank was asked to stop"
            if world.is_main:
                warn(f"{reason}: {stopped}. {_how_to_go_on(config, run_dir)}")
            return verdict.write(EXIT_REQUEUE, reason)
        return verdict.write(EXIT_DONE, "done")


def agree_on_run_dir(config: RunConfig, world: World) -> Path:
    """The run's folder, on every rank; rank 0 makes one where none is named. Raises InputError on all ranks."""
    made: list[str] = [config.run_dir] if config.run_dir else []
    run_on_all_ranks(world, lambda: made.append(make_run_dir(config)) if world.is_main and not made else None)
    return Path(broadcast_text(world, made[0] if made else ""))


def _how_to_go_on(config: RunConfig, run_dir: Path) -> str:
    again = "The same command" if config.run_dir else f"The same command with run_dir={run_dir}"
    return f"{again} goes on from there."


def run(
    config: RunConfig,
    inputs: Inputs,
    world: World,
    run_dir: Path,
    stop: StopRequest,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Builds everything and trains. Raises InputError, Failure, or Stopped once a signal was obeyed.

    begin: called once all inputs have proved good, before the first step.
    """
    warmup_steps = config.scheduler.warmup(config.train.steps)
    if world.is_main and warmup_steps >= config.train.steps:
        print(
            f"warning: the learning rate warms up over all of train.steps={config.train.steps}: "
            f"scheduler.warmup_steps={warmup_steps}",
            file=sys.stderr,
        )
    with Watchdog(run_dir, world, config.train.watchdog_seconds, config.train.timeout_seconds) as watchdog:
        trainer = build(config, inputs, world, run_dir, stop, watchdog.phases)
        watchdog.start_step = trainer.step
        begin()
        if world.is_main:
            tell("\n".join(rate_lines(config)))
        with trainer.record.tracker:
            try:
                trainer.fit()
            finally:
                expect_workers_to_end()
    if world.is_main:
        _print_result(run_dir)


def examples(config: RunConfig, inputs: Inputs) -> str:
    """The first `config.inspect` training samples, readable; pictures are saved and named."""
    from pretraining.objectives.samples import first_samples

    objective = inputs.objective
    shown = []
    for number, sample in enumerate(first_samples(inputs.training, objective, config.inspect)):
        text, picture = objective.describe(sample), objective.picture(sample)
        if picture is not None:
            name = f"example_{number}.png"
            picture.save(name)
            text += f"\n{name}"
        shown.append(f"--- example {number}\n{text}")
    return "\n".join(shown)


def _print_result(run_dir: Path) -> None:
    try:
        picture = f"loss curve: {draw_losses(run_dir)}"
    except OSError as error:  # the run is done all the same
        picture = f"loss curve: could not be drawn ({error})"
    valid = [loss for _, loss in points(read_metrics(run_dir / METRICS), "valid_loss")]
    if valid:
        change = f" ({100 * (valid[-1] / valid[0] - 1):+.1f}%)" if valid[0] else ""
        tell(f"validation loss {valid[0]:.4f} -> {valid[-1]:.4f}{change}")
    tell(f"{picture}\nrun folder: {run_dir}")


if __name__ == "__main__":
    console()

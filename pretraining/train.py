"""`pretrain`: compose the config, check the inputs, build, fit."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NoReturn

from data_pipeline.common.command import run_command
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE
from pretraining.build import Inputs, build, read_inputs
from pretraining.config import RunConfig, load_config
from pretraining.parallel.host import broadcast_text
from pretraining.parallel.launch import read_launch
from pretraining.parallel.world import World, start_world
from pretraining.run.faults import Stopped, StopRequest
from pretraining.run.metrics import METRICS, draw_losses, read_metrics
from pretraining.run.process import end_process
from pretraining.run.run_dir import default_run_dir, named_run_dir
from pretraining.run.verdict import Verdict
from pretraining.synonyms import SYNONYMS

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
    end_process(code)


def main() -> int:
    return run_command(pretrain, EXAMPLE, "pretrain", RunConfig, SYNONYMS)


def pretrain(overrides: list[str]) -> int:
    """Trains as these Hydra overrides say -> exit code."""
    stop = StopRequest().install()  # before torch is imported
    launch = read_launch()
    with Verdict(launch.rank, named_run_dir(overrides)) as verdict:
        config = load_config(overrides, launch.size)
        inputs = read_inputs(config)
        if config.inspect:
            print(examples(config, inputs))
            return EXIT_DONE
        world = start_world(launch, config.engine.tensor_parallel)
        run_dir = Path(config.run_dir or broadcast_text(world, default_run_dir(config)))
        verdict.begin(run_dir)
        try:
            run(config, inputs, world, run_dir, stop)
        except Stopped:
            return verdict.write(EXIT_REQUEUE, stop.reason or "another rank was asked to stop")
        return verdict.write(EXIT_DONE, "done")


def run(config: RunConfig, inputs: Inputs, world: World, run_dir: Path, stop: StopRequest) -> None:
    """Builds everything and trains. Raises InputError, Failure, or Stopped once a signal was obeyed."""
    if world.is_main and config.scheduler.warmup_steps >= config.train.steps:
        print(
            f"warning: the learning rate warms up over all of train.steps={config.train.steps}: "
            f"scheduler.warmup_steps={config.scheduler.warmup_steps}",
            file=sys.stderr,
        )
    trainer = build(config, inputs, world, run_dir, stop)
    with trainer.record.tracker:
        trainer.fit()
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
    picture = draw_losses(run_dir)
    valid = [line["valid_loss"] for line in read_metrics(run_dir / METRICS) if "valid_loss" in line]
    if valid and valid[0] is not None and valid[-1] is not None:
        change = 100 * (valid[-1] / valid[0] - 1)
        print(f"validation loss {valid[0]:.4f} -> {valid[-1]:.4f} ({change:+.1f}%)")
    print(f"loss curve: {picture}\nrun folder: {run_dir}")


if __name__ == "__main__":
    console()

"""`pretrain`: the entry. Signals are handled before anything slow is imported; `pretraining.job` is what follows."""

from __future__ import annotations

import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from typing import NoReturn

from data_pipeline.common.errors import EXIT_FAILED, InputError
from pretraining.parallel.launch import read_launch
from pretraining.run.process import end_process
from pretraining.run.signals import EXIT_INTERRUPTED, StopRequest
from pretraining.run.verdict import Verdict, named_run_dir

EXAMPLE = """pretrain: trains a model on data that pretrain-data prepared.

Example:
  pretrain model=gpt2_small objective=causal_lm data.path=DIR optimizer.lr=6e-4 train.steps=1000 run_dir=runs/first
  torchrun --nproc-per-node 2 -m pretraining.train model=gpt2_small engine=deepspeed engine.zero_stage=2 data.path=DIR
  pretrain --multirun model=gpt2_small data.path=DIR optimizer.lr=3e-4,6e-4,1e-3 run_dir=runs/rates
"""


def console() -> NoReturn:
    """The command itself: an exception ends this process too, whatever workers and threads it leaves behind."""
    stop = StopRequest().install()
    stop.on_end = _tell_early
    try:
        code = main(stop)
    except Exception:
        traceback.print_exc()
        code = EXIT_FAILED
    except KeyboardInterrupt:  # a second Ctrl-C
        print("ended at once: the run goes on from its last checkpoint with the same command", file=sys.stderr)
        code = EXIT_INTERRUPTED
    end_process(code)


def main(stop: StopRequest | None = None) -> int:
    from data_pipeline.common.command import run_command
    from pretraining.config import RunConfig
    from pretraining.synonyms import SYNONYMS

    train, sweep = partial(pretrain, stop=stop), partial(multirun, stop=stop)
    return run_command(train, EXAMPLE, "pretrain", RunConfig, SYNONYMS, sweep)


def pretrain(overrides: list[str], stop: StopRequest | None = None) -> int:
    """Trains as these Hydra overrides say -> exit code. stop: where the process handles signals already."""
    began = time.time()  # importing takes seconds, which the run's clock counts
    from pretraining.job import Job

    launch = read_launch()
    stopping = stop or StopRequest().install()
    stopping.announces = launch.rank == 0
    try:
        with Verdict(launch.rank, named_run_dir(overrides)) as verdict:
            return Job(launch, stopping, verdict, began).run(overrides)
    finally:
        if stop is None:
            stopping.remove()


def multirun(overrides: list[str], stop: StopRequest | None = None) -> int:
    """Trains every combination of the overrides' values, one after another -> exit code."""
    from pretraining.sweep import Sweep

    if read_launch().size > 1:
        raise InputError("--multirun starts runs of one process each: start it without a launcher")
    stopping = stop or StopRequest().install()
    try:
        return Sweep(overrides, stopping).run()
    finally:
        if stop is None:
            stopping.remove()


def _tell_early(code: int, reason: str) -> None:
    """A signal came while modules were being imported."""
    with suppress(InputError):
        Verdict(read_launch().rank, named_run_dir(sys.argv[1:])).write(code, reason)


if __name__ == "__main__":
    console()

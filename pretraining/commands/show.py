"""`python -m pretraining.commands.show run_dir=DIR`: what the newest checkpoint of a run does, shown on an example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config, groups_help
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import configclass

SHOWN = 64  # validation samples


@configclass
class ShowConfig:
    run_dir: str
    seed: int = 1


def main() -> int:
    text = "python -m pretraining.commands.show run_dir=DIR: shows what a trained model does.\n\n"
    return run_command(show, lambda: text + groups_help("show"))


def show(overrides: list[str]) -> None:
    from data_pipeline.stream.stream import Stream
    from pretraining.objectives.samples import Demonstration, first_samples
    from pretraining.run.checkpoint import newest_checkpoint
    from pretraining.run.prepared import Prepared
    from pretraining.run.run_dir import load_plain_model, read_run_config

    config = compose_config("show", overrides, ShowConfig)
    run_dir = Path(config.run_dir)
    run = read_run_config(run_dir)
    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{run_dir / 'checkpoints'} holds no checkpoint")
    data = Prepared(run)
    objective = run.objective.build(data.vocabulary, run.sample_shape)
    maker: Any = objective.for_evaluation()
    stream = Stream(data.reader("valid"), maker.packing(), config.seed)
    context = Demonstration(data.tokenizer, first_samples(stream, maker, SHOWN), run_dir, config.seed)
    print(objective.demonstrate(load_plain_model(run, data.outputs, objective, checkpoint), context))


if __name__ == "__main__":
    sys.exit(main())

"""`pretrain-show run_dir=DIR`: what the newest checkpoint of a run does, shown on validation samples."""

from __future__ import annotations

import sys
from dataclasses import field
from pathlib import Path

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PathText, configclass

VALIDATION_SAMPLES = 64
ABOUT = """pretrain-show: shows what a trained model does.

Example:
  pretrain-show run_dir=runs/first
"""


@configclass
class ShowConfig:
    """Show what a trained model does.

    run_dir: the run, whose newest checkpoint is taken.
    seed: of the order in which validation samples come, and of generated text.
    modules: your own, which the run imports too; config.yaml alone cannot make anything be imported.
    """

    run_dir: PathText
    seed: int = 1
    modules: list[str] = field(default_factory=list)


def main() -> int:
    return run_command(show, ABOUT, "show", ShowConfig)


def show(overrides: list[str]) -> None:
    from pretraining.objectives.base import Demonstration
    from pretraining.objectives.registry import build_objective
    from pretraining.objectives.samples import first_samples
    from pretraining.run.checkpoint_format import newest_checkpoint
    from pretraining.run.prepared import Prepared
    from pretraining.run.run_dir import load_plain_model, read_run_config

    config = compose_config("show", overrides, ShowConfig)
    run_dir = Path(config.run_dir)
    run = read_run_config(run_dir, config.modules)
    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{run_dir / 'checkpoints'} holds no checkpoint")
    data = Prepared(run)
    objective = build_objective(run.objective, data.spec).for_evaluation()
    source = data.source("valid", objective.packing_of, config.seed)
    samples = first_samples(source, objective, max(VALIDATION_SAMPLES, objective.scored_samples))
    model = load_plain_model(run, data.vocabulary, objective, checkpoint)
    print(objective.demonstrate(model, Demonstration(samples, run_dir, config.seed)))
    for name, value in objective.scores(model, samples).items():
        print(f"\n{name} {value:.2f}")


if __name__ == "__main__":
    sys.exit(main())

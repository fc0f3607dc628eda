"""`python -m pretraining.commands.show run_dir=DIR`: what the newest checkpoint of a run does, shown on an example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data_pipeline.config import InputError, compose_config, configclass, groups_help, run_command

SHOWN = 8  # validation samples


@configclass
class ShowConfig:
    run_dir: str
    seed: int = 1


def main() -> int:
    text = "python -m pretraining.commands.show run_dir=DIR: shows what a trained model does.\n\n"
    return run_command(show, lambda: text + groups_help("show"))


def show(overrides: list[str]) -> None:
    from data_pipeline.stream import Stream
    from pretraining.objectives.demonstration import Demonstration, first_samples
    from pretraining.prepared import Prepared

    config = compose_config("show", overrides, ShowConfig)
    run_dir = Path(config.run_dir)
    run = load_run_config(run_dir)
    data = Prepared(run)
    objective = run.objective.build(data.vocabulary, run.sample_shape)
    maker = objective.for_evaluation()
    stream = Stream(data.reader("valid"), maker.packing(), config.seed, shuffle=False)
    context = Demonstration(data.tokenizer, first_samples(stream, maker, SHOWN), run_dir, config.seed)
    print(objective.demonstrate(load_model(run, data, run_dir), context))


def load_run_config(run_dir: Path) -> Any:
    """The RunConfig that a run was started with. Raises InputError where there is none."""
    import json

    import pydantic
    from omegaconf import OmegaConf

    from pretraining.config import RunConfig

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: run_dir is the folder that pretrain wrote")
    values = OmegaConf.to_container(OmegaConf.load(path))
    return pydantic.TypeAdapter(RunConfig).validate_json(json.dumps(values))


def load_model(run: Any, data: Any, run_dir: Path) -> Any:
    """The model with the weights of the newest whole checkpoint."""
    from pretraining.checkpoint import load_tensors, newest_checkpoint
    from pretraining.optim.shards import Fragment
    from pretraining.parallel.layers import PlainLayers

    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if checkpoint is None:
        raise InputError(f"{run_dir / 'checkpoints'} holds no checkpoint")
    model = run.model.build(data.outputs, PlainLayers())
    load_tensors(checkpoint, [(Fragment.whole(f"weights.{n}", tuple(p.shape)), p.data)
                              for n, p in model.named_parameters()])
    return model


if __name__ == "__main__":
    sys.exit(main())

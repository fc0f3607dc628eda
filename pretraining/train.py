"""`pretrain`: compose the config, check the inputs, build, fit."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.config import (
    EXIT_DONE,
    EXIT_INPUT_ERROR,
    EXIT_REQUEUE,
    InputError,
    groups_help,
    run_command,
    to_dict,
)
from pretraining.config import RunConfig, load_config
from pretraining.faults import Stopped, StopRequest
from pretraining.parallel.launch import World, broadcast_text, read_launch, start_world, stop_world

EXAMPLE = """pretrain: trains a model on data that pretrain-data prepared.

Example:
  pretrain model=gpt2_small objective=causal_lm data.path=DIR optimizer.lr=6e-4 train.steps=1000 run_dir=runs/first
  torchrun --nproc-per-node 2 -m pretraining.train model=gpt2_small engine=deepspeed engine.zero_stage=2 data.path=DIR
"""


def main() -> int:
    return run_command(pretrain, lambda: EXAMPLE + "\n" + groups_help("pretrain"))


def pretrain(overrides: list[str]) -> int:
    """Trains as these Hydra overrides say -> exit code."""
    stop = StopRequest().install()  # before torch is imported
    launch = read_launch()
    config = load_config(overrides)
    try:
        inputs = Inputs(config)
        world = start_world(launch)
        code, reason = _run(config, inputs, world, stop), "done"
    except InputError as error:
        _verdict(config, launch.rank, EXIT_INPUT_ERROR, str(error))
        raise
    except Stopped:
        code, reason = EXIT_REQUEUE, stop.reason or "another rank was asked to stop"
    _verdict(config, launch.rank, code, reason)
    stop_world(world)
    return code


class Inputs:
    """What is read and checked before any process group: prepared data, tokenizer, run folder, checkpoint."""

    def __init__(self, config: RunConfig) -> None:
        from data_pipeline.shards import check_files, load_manifest
        from data_pipeline.tokenizer import Tokenizer
        from pretraining.run_dir import check_identity, find_checkpoint

        self.manifest = load_manifest(Path(config.data.path or ""))
        check_files(self.manifest)
        self.tokenizer = Tokenizer.load(Path(config.data.path or "") / "tokenizer")
        self.vocab_size = self._vocabulary(config)
        self.objective = config.objective.build(self.tokenizer, config.seq_len)
        check_identity(config, self.manifest.fingerprint)
        self.checkpoint = find_checkpoint(config)
        self.pretrained = self._pretrained(config)

    def _vocabulary(self, config: RunConfig) -> int:
        found, wanted = self.tokenizer.total_size, config.model.vocab_size
        if wanted not in (None, found):
            raise InputError(f"data.path={config.data.path} was tokenized with a vocabulary of {found}, "
                             f"model.vocab_size is {wanted}")
        return found

    def _pretrained(self, config: RunConfig) -> Any:
        """The Hugging Face folder that a new run starts from, if any."""
        if config.model.init_from is None or self.checkpoint is not None:
            return None
        from pretraining.init_from import HuggingFaceFolder

        return HuggingFaceFolder(config.model.init_from, config.model, self.vocab_size, self.tokenizer)


def _run(config: RunConfig, inputs: Inputs, world: World, stop: StopRequest) -> int:
    import torch

    from pretraining.engines.protocol import LossModule
    from pretraining.parallel.layers import PlainLayers
    from pretraining.run_dir import default_run_dir, write_config
    from pretraining.trainer import Trainer

    torch.use_deterministic_algorithms(config.train.deterministic)
    run_dir = Path(config.run_dir or broadcast_text(world, default_run_dir(config)))
    if world.is_main:
        write_config(config, run_dir, inputs.manifest.fingerprint)
    objective = inputs.objective
    model = config.model.build(inputs.vocab_size, PlainLayers())
    flops = model.flops_per_token(config.seq_len)
    model.initialise(config.train.seed)
    if inputs.pretrained is not None:
        inputs.pretrained.load_into(model)
    module = LossModule(model, objective, config.train.precision)
    engine = config.engine.build(module, config.optimizer.build(), config.train, world)
    tracker = _build_tracker(config, inputs, world, run_dir)
    feeds = _feeds(config, inputs, objective, world)
    trainer = Trainer(config, engine, objective, *feeds, tracker, world, run_dir, stop, flops)
    if inputs.checkpoint is not None:
        trainer.resume(inputs.checkpoint)
    code = EXIT_INPUT_ERROR
    try:
        trainer.fit()
        code = EXIT_DONE
    except Stopped:
        code = EXIT_REQUEUE
        raise
    finally:
        tracker.close(code)
    if world.is_main:
        _tell_result(run_dir)
    return code


def _build_tracker(config: RunConfig, inputs: Inputs, world: World, run_dir: Path) -> Any:
    from pretraining.tracking import NoTracker, Tracker

    if not world.is_main:
        return NoTracker()
    start = 0 if inputs.checkpoint is None else inputs.checkpoint.state["step"]
    return Tracker(config.tracking, run_dir, start, config.train.steps, to_dict(config))


def _feeds(config: RunConfig, inputs: Inputs, objective: Any, world: World) -> tuple[Any, Any]:
    """-> (training loader from a position, validation loader from the beginning)."""
    from data_pipeline.loader import Share, load
    from data_pipeline.shards import ShardReader
    from data_pipeline.stream import Position, Stream

    train = config.train
    share = Share(train.global_batch_size, train.micro_batch_size, world.data_rank, world.data_size)
    make = partial(Stream, packing=objective.packing(), seed=train.seed, window_blocks=config.data.window_blocks)
    stream = make(ShardReader(inputs.manifest, "train"))
    valid = make(ShardReader(inputs.manifest, "valid"), shuffle=False)
    pin = world.device.type == "cuda"
    feed = partial(load, stream, objective, share, num_workers=config.data.num_workers, pin_memory=pin)
    return feed, partial(load, valid, objective, share, Position(), num_workers=0)


def _verdict(config: RunConfig, rank: int, code: int, reason: str) -> None:
    from pretraining.run_dir import write_verdict

    if rank == 0 and config.run_dir is not None:
        write_verdict(Path(config.run_dir), code, reason)


def _tell_result(run_dir: Path) -> None:
    from pretraining.tracking import draw_losses, read_metrics

    picture = draw_losses(run_dir)
    valid = [line["valid_loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "valid_loss" in line]
    if valid:
        change = 100 * (valid[-1] / valid[0] - 1)
        print(f"validation loss {valid[0]:.4f} -> {valid[-1]:.4f} ({change:+.1f}%)")
    print(f"loss curve: {picture}\nrun folder: {run_dir}")


if __name__ == "__main__":
    sys.exit(main())

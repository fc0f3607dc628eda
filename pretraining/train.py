"""`pretrain`: compose the config, check the inputs, build, fit."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from data_pipeline.common.command import run_command
from data_pipeline.common.compose import groups_help
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, EXIT_REQUEUE, InputError
from data_pipeline.common.fields import to_dict
from data_pipeline.common.files import write_atomically
from data_pipeline.stream.stream import Position, Stream
from pretraining.config import RunConfig, identity, load_config
from pretraining.objectives.base import Objective
from pretraining.objectives.registry import build_objective
from pretraining.parallel.launch import World, broadcast_text, end_process, read_launch, start_world, together
from pretraining.run.faults import Stopped, StopRequest
from pretraining.run.run_dir import (
    VERDICT,
    check_run_dir,
    default_run_dir,
    find_checkpoint,
    named_run_dir,
    require_of_run,
    write_config,
)

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
    return run_command(pretrain, lambda: EXAMPLE + "\n" + groups_help("pretrain"))


def pretrain(overrides: list[str]) -> int:
    """Trains as these Hydra overrides say -> exit code."""
    stop = StopRequest().install()  # before torch is imported
    launch = read_launch()
    verdict = Verdict(launch.rank, named_run_dir(overrides))
    with verdict:
        config = load_config(overrides)
        inputs = Inputs(config)
        if config.inspect:
            print(examples(config, inputs))
            return EXIT_DONE
        world = start_world(launch, config.engine.tensor_parallel)
        verdict.run_dir = config.run_dir or broadcast_text(world, default_run_dir(config))
        verdict.remove()
        try:
            run(config, inputs, world, Path(verdict.run_dir), stop)
        except Stopped:
            return verdict.write(EXIT_REQUEUE, stop.reason or "another rank was asked to stop")
        return verdict.write(EXIT_DONE, "done")


@dataclass
class Verdict:
    """run_dir/verdict.json: the exit code, since launchers hide codes. Rank 0 writes it, of exceptions as well."""

    rank: int
    run_dir: str | None

    def write(self, code: int, reason: str) -> int:
        """-> code."""
        if self.rank == 0 and self.run_dir is not None:
            with suppress(OSError):  # no folder can be made of that name: the message tells it
                Path(self.run_dir).mkdir(parents=True, exist_ok=True)
                write_atomically(Path(self.run_dir) / VERDICT, json.dumps({"exit_code": code, "reason": reason}))
        return code

    def remove(self) -> None:
        """What the run before said is not true while this one lasts."""
        if self.rank == 0 and self.run_dir is not None:
            (Path(self.run_dir) / VERDICT).unlink(missing_ok=True)

    def __enter__(self) -> Verdict:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, InputError):
            self.write(EXIT_INPUT_ERROR, str(error))
        elif error is not None:
            self.write(EXIT_FAILED, str(error) or repr(error))


class Inputs:
    """What is read and checked before any process group: prepared data, run folder, checkpoint."""

    def __init__(self, config: RunConfig) -> None:
        from pretraining.run.prepared import Prepared

        self.data = Prepared(config)
        self.objective = build_objective(config.objective, self.data.spec)
        check_targets(config, self.objective.target_length())
        self.identity = identity(config, self.data.manifest.fingerprint)
        check_run_dir(config, self.identity)
        self.checkpoint = find_checkpoint(config, self.identity)
        self.pretrained = self._pretrained(config)

    def _pretrained(self, config: RunConfig) -> Any:
        """The Hugging Face folder that a new run starts from, if any."""
        if config.model.init_from is None or self.checkpoint is not None:
            return None
        from pretraining.hub.init_from import HuggingFaceFolder
        from pretraining.models.shapes import shapes_of

        outputs = self.data.outputs
        return HuggingFaceFolder(
            config.model.init_from, shapes_of(config.model, outputs, self.objective), outputs, self.data.tokenizer
        )


def check_targets(config: RunConfig, length: int) -> None:
    """Sequence parallelism splits what a decoder writes as well; its length is the objective's."""
    parts = config.engine.tensor_parallel
    if config.engine.sequence_parallel and length % parts:
        raise InputError(
            f"engine.sequence_parallel=true: the length of the targets, {length} tokens, is not divisible by "
            f"engine.tensor_parallel={parts}; objective.targets_length={length + parts - length % parts} is"
        )


def run(config: RunConfig, inputs: Inputs, world: World, run_dir: Path, stop: StopRequest) -> None:
    """Builds everything and trains. Raises InputError, Failure, or Stopped once a signal was obeyed."""
    if world.is_main and config.scheduler.warmup_steps >= config.train.steps:
        print(
            f"warning: the learning rate warms up over all of train.steps={config.train.steps}: "
            f"scheduler.warmup_steps={config.scheduler.warmup_steps}",
            file=sys.stderr,
        )
    trainer = build(config, inputs, world, run_dir, stop)
    with trainer.tracker:
        trainer.fit()
    if world.is_main:
        _tell_result(run_dir)


def build(config: RunConfig, inputs: Inputs, world: World, run_dir: Path, stop: StopRequest) -> Any:
    """The trainer, at the checkpoint that the inputs name."""
    import torch

    from pretraining.engines.base import LossModule
    from pretraining.models.heads import attach_heads
    from pretraining.models.registry import build_model
    from pretraining.trainer import Trainer

    torch.use_deterministic_algorithms(config.train.deterministic)
    objective = inputs.objective
    layers = config.engine.make_layers(world)
    model: Any = attach_heads(build_model(config.model, inputs.data.outputs, layers), objective, layers)
    model.initialize(config.train.seed)
    if inputs.pretrained is not None:
        inputs.pretrained.load_into(model)
        for note in inputs.pretrained.notes() if world.is_main else ():
            print(note, file=sys.stderr)
    _freeze(model, config.train.freeze)
    flops = objective.flops_per_unit(model)
    module = LossModule(model, objective, config.train.precision)
    engine = config.engine.build(module, config.optimizer.build(), config.train, world)
    if inputs.checkpoint is not None:
        inputs.checkpoint = _load_into(engine, inputs.checkpoint, config, inputs.identity, world)
    tracker = _open_run_dir(config, inputs, world, run_dir)  # no file of a run changes before all inputs proved good
    trainer = Trainer(
        config, inputs.identity, engine, objective, *_feeds(config, inputs, world), tracker, world, run_dir, stop, flops
    )
    if inputs.checkpoint is not None:
        trainer.resume(inputs.checkpoint.state)
    return trainer


def _freeze(model: Any, patterns: list[str]) -> None:
    parameters = dict(model.named_parameters())
    unmatched = [p for p in patterns if not any(fnmatch(name, p) for name in parameters)]
    if unmatched:
        raise InputError(
            f"train.freeze: no parameter is named {' or '.join(unmatched)}; there are "
            f"{', '.join(list(parameters)[:5])}, ..."
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(not any(fnmatch(name, pattern) for pattern in patterns))
    if not any(p.requires_grad for p in parameters.values()):
        raise InputError(f"train.freeze={patterns} leaves nothing to train")


def _load_into(engine: Any, checkpoint: Any, config: RunConfig, run: dict[str, Any], world: World) -> Any:
    """-> the checkpoint that the engine is at now: with train.resume=auto the newest whose bytes are undamaged."""
    from pretraining.run.checkpoint import check_fits, load_tensors, newest_checkpoint

    together(world, partial(check_fits, checkpoint, engine.tensors()))
    try:
        together(world, partial(load_tensors, checkpoint, engine.tensors()))
    except InputError as error:
        older = newest_checkpoint(checkpoint.folder.parent, before=checkpoint)
        if config.train.resume != "auto" or older is None:
            raise
        print(f"skipped {checkpoint.folder.name}: {error}", file=sys.stderr)
        require_of_run(older, run)
        return _load_into(engine, older, config, run, world)
    engine.after_load()
    return checkpoint


def examples(config: RunConfig, inputs: Inputs) -> str:
    """The first `config.inspect` training examples, readable; pictures are saved and named."""
    from pretraining.objectives.samples import first_samples

    stream = _stream(config, inputs, inputs.objective, "train")
    shown = []
    for number, sample in enumerate(first_samples(stream, inputs.objective, config.inspect)):
        text, picture = inputs.objective.describe(sample), inputs.objective.picture(sample)
        if picture is not None:
            name = f"example_{number}.png"
            picture.save(name)
            text += f"\n{name}"
        shown.append(f"--- example {number}\n{text}")
    return "\n".join(shown)


def _open_run_dir(config: RunConfig, inputs: Inputs, world: World, run_dir: Path) -> Any:
    """-> the tracker. What an earlier run wrote beyond the checkpoint is cut off or set aside."""
    from pretraining.run.checkpoint import set_aside_newer
    from pretraining.run.tracking import NullTracker, Tracker

    if not world.is_main:
        return NullTracker()
    start = None if inputs.checkpoint is None else inputs.checkpoint.state["step"]
    write_config(config, run_dir, inputs.identity)
    set_aside_newer(run_dir / "checkpoints", start)
    return Tracker(config.tracking, run_dir, start, config.train.steps, to_dict(config))


def _stream(config: RunConfig, inputs: Inputs, maker: Objective, split: str) -> Stream:
    reader, blocks = inputs.data.reader(split), config.data.window_blocks
    return Stream(reader, maker.packing(), config.train.seed, window_blocks=blocks)


def _feeds(config: RunConfig, inputs: Inputs, world: World) -> tuple[Any, Any]:
    """-> (training loader from a position, validation loader from the beginning)."""
    from data_pipeline.loader import RankSlice, load

    train = config.train
    share = RankSlice(train.global_batch_size, train.micro_batch_size, world.data_rank, world.data_size)
    maker, evaluation = inputs.objective, inputs.objective.for_evaluation()
    feed = partial(
        load,
        _stream(config, inputs, maker, "train"),
        maker,
        share,
        num_workers=config.data.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    valid = _stream(config, inputs, evaluation, "valid")
    return feed, partial(load, valid, evaluation, share, Position(), num_workers=0)


def _tell_result(run_dir: Path) -> None:
    from pretraining.run.tracking import draw_losses, read_metrics

    picture = draw_losses(run_dir)
    valid = [line["valid_loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "valid_loss" in line]
    if valid and None not in (valid[0], valid[-1]):
        change = 100 * (valid[-1] / valid[0] - 1)
        print(f"validation loss {valid[0]:.4f} -> {valid[-1]:.4f} ({change:+.1f}%)")
    print(f"loss curve: {picture}\nrun folder: {run_dir}")


if __name__ == "__main__":
    console()

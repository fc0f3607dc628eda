"""Puts a run together: what it reads, checked before any process group, and the trainer built from it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.common.errors import InputError
from pretraining.config import MIXED_BATCHES, RunConfig, TrainConfig, identity
from pretraining.models.config import TextConfig
from pretraining.objectives.base import Objective
from pretraining.objectives.registry import build_objective
from pretraining.parallel.host import Ranks, run_on_all_ranks
from pretraining.parallel.meeting import Meeting
from pretraining.parallel.mesh import Axis
from pretraining.run.agreement import agree_on_checkpoint, code_facts, require_equal_replicas, require_same
from pretraining.run.checkpoint_format import Checkpoint
from pretraining.run.checkpoint_reader import NotFinite, check_fits, load_tensors
from pretraining.run.ownership import Ownership
from pretraining.run.phases import Phases
from pretraining.run.prepared import Prepared
from pretraining.run.retention import set_aside_newer
from pretraining.run.run_dir import (
    Identity,
    check_run_dir,
    find_checkpoint,
    older_checkpoint,
    recorded_config,
    require_of_run,
    write_config,
)
from pretraining.run.shared_folder import prove_shared
from pretraining.run.signals import StopRequest

if TYPE_CHECKING:  # heavy: imported where they are used, after the inputs were checked
    from data_pipeline.stream.sequence_source import SequenceSource
    from pretraining.engines.base import Engine
    from pretraining.feeds import Feeds
    from pretraining.hub.init_from import HuggingFaceFolder
    from pretraining.models.base import Model
    from pretraining.parallel.world import World
    from pretraining.run.throughput import Throughput
    from pretraining.run.tracking import Tracker
    from pretraining.trainer import Trainer


ALONE = Meeting()


@dataclass(frozen=True)
class Inputs:
    """What is read and checked before any process group: prepared data, run folder, checkpoint.

    training, validation: the order of each split's sequences. checkpoint: to go on from, if any. pretrained: the
    Hugging Face folder that a new run starts from, if any.
    """

    data: Prepared
    objective: Objective
    training: SequenceSource[Any]
    validation: SequenceSource[Any]
    identity: Identity
    checkpoint: Checkpoint | None
    pretrained: HuggingFaceFolder | None


@dataclass(frozen=True)
class Data:
    """What of the inputs depends on the prepared data alone."""

    prepared: Prepared
    objective: Objective
    training: SequenceSource[Any]
    validation: SequenceSource[Any]


def read_inputs(config: RunConfig, ranks: Ranks = ALONE, claim: Callable[[], None] = lambda: None) -> Inputs:
    """Raises InputError, on all ranks where one of them finds a fault, or sees other data or another checkpoint.

    claim: called on rank 0 once the run folder has proved to be of this run, before its checkpoints are looked at.
    """
    data = run_on_all_ranks(ranks, partial(read_data, config))
    run = identity(config, data.prepared.bound)
    require_same(ranks, {"data.path's content": data.prepared.fingerprint})
    if not config.inspect:
        run_on_all_ranks(ranks, partial(check_run_dir, config, run))
        run_on_all_ranks(ranks, claim if ranks.is_main else lambda: None)
    checkpoint = agree_on_checkpoint(ranks, partial(find_checkpoint, config, run))
    pretrained = run_on_all_ranks(ranks, partial(read_start, config, data, checkpoint))
    return Inputs(data.prepared, data.objective, data.training, data.validation, run, checkpoint, pretrained)


def read_data(config: RunConfig) -> Data:
    """Checks all but the shards' content. Raises InputError."""
    data = Prepared(config)
    objective = build_objective(config.objective, data.spec)
    check_target_length(config, objective.target_length())
    training = make_stream(config, data, objective, "train")
    validation = make_stream(config, data, objective.for_evaluation(), "valid")
    for stream in (training, validation) if config.train.eval_every else (training,):
        stream.advance(stream.start(), 0)  # there is a sequence
    return Data(data, objective, training, validation)


def read_start(config: RunConfig, data: Data, checkpoint: Checkpoint | None) -> HuggingFaceFolder | None:
    """Checks what the run starts from, which is not yet loaded -> the published model, if it is that."""
    if checkpoint is not None:
        try:
            data.training.from_json(checkpoint.state["position"])
        except InputError as error:
            raise InputError(f"{checkpoint.folder}: {error}") from error
    if config.model.init_from is None or checkpoint is not None:
        return None
    from pretraining.hub.init_from import HuggingFaceFolder
    from pretraining.models.shapes import shapes_of

    vocabulary = data.prepared.vocabulary
    shapes = shapes_of(config.model, vocabulary, data.objective)
    new_rows = config.model.new_rows if isinstance(config.model, TextConfig) else None
    return HuggingFaceFolder(config.model.init_from, shapes, vocabulary.outputs, data.prepared.tokenizer, new_rows)


def inputs_at(config: RunConfig, checkpoint: Checkpoint | None) -> Inputs:
    """As read_inputs, at this checkpoint, or at the beginning; no run_dir is looked at. Raises InputError."""
    data = read_data(config)
    run = identity(config, data.prepared.bound)
    if checkpoint is not None:
        require_of_run(checkpoint, run)
    pretrained = read_start(config, data, checkpoint)
    return Inputs(data.prepared, data.objective, data.training, data.validation, run, checkpoint, pretrained)


def check_target_length(config: RunConfig, length: int) -> None:
    """Sequence parallelism splits what a decoder writes as well; its length is the objective's."""
    longest = config.model.longest_targets
    if longest is not None and length > longest:
        raise InputError(
            f"the decoder is to write {length} tokens (objective.targets_length), more than model.max_seq_len={longest}"
        )
    parts = config.engine.tensor_parallel
    if config.engine.sequence_parallel and length % parts:
        raise InputError(
            f"engine.sequence_parallel=true: targets of {length} tokens are not divisible by "
            f"engine.tensor_parallel={parts}; use objective.targets_length={length + parts - length % parts}"
        )


def build(
    config: RunConfig,
    inputs: Inputs,
    world: World,
    run_dir: Path,
    stop: StopRequest,
    phases: Phases | None = None,
    owner: Ownership | None = None,
    began: float | None = None,
) -> Trainer:
    """The trainer, at the checkpoint that the inputs name. phases: where it tells the watchdog what it does. owner: of
    run_dir, on rank 0. began: this start, in epoch seconds; None: now."""

    def open_tracker(checkpoint: Checkpoint | None) -> Tracker:
        return _open_run_dir(config, inputs, checkpoint, world, run_dir, began or time.time())

    return build_recorded(config, inputs, world, run_dir, stop, phases or Phases(), open_tracker, owner)


def build_recorded(
    config: RunConfig,
    inputs: Inputs,
    world: World,
    folder: Path,
    stop: StopRequest,
    phases: Phases,
    open_tracker: Callable[[Checkpoint | None], Tracker],
    owner: Ownership | None = None,
) -> Trainer:
    """As `build`, for a run that is recorded in `folder` by what open_tracker makes of the checkpoint that it is at."""
    import torch

    from pretraining.engines.base import LossModule
    from pretraining.engines.build import build_engine, make_layers
    from pretraining.models.heads import attach_heads
    from pretraining.models.registry import build_model
    from pretraining.optim.registry import build_update_rule
    from pretraining.parallel.world import limit_groups
    from pretraining.record import Record
    from pretraining.run.profiling import StepProfiler
    from pretraining.run.showing import Showing
    from pretraining.trainer import Trainer

    if config.train.deterministic != torch.are_deterministic_algorithms_enabled():  # else it only loads the compiler
        torch.use_deterministic_algorithms(config.train.deterministic)
    objective = inputs.objective
    layers = make_layers(config.engine, world.mesh)
    model = attach_heads(build_model(config.model, inputs.data.vocabulary, layers), objective, layers)
    throughput = _throughput(objective, model, world)
    freeze(model, config.train.freeze)
    module = LossModule(model, objective, config.train.precision)
    phases.follow(module)
    start = partial(_start, model, config.train, inputs, world)
    engine = build_engine(config.engine, module, build_update_rule(config.optimizer), config.train, world, start)
    limit_groups(config.train.timeout_seconds)
    checkpoint = inputs.checkpoint
    if checkpoint is not None:
        checkpoint = _load_into(engine, checkpoint, config, inputs.identity, world)
    require_equal_replicas(world, engine, config.train.deterministic, "before the first step")
    # No file of a run changes before all inputs proved good.
    tracker = open_tracker(checkpoint)
    feeds = _feeds(config, inputs, world)
    showing = None
    if world.is_main and (config.tracking.samples or objective.scored_samples):
        shown, seed = config.tracking.samples, config.train.seed
        showing = Showing(engine, objective, feeds.first_validation, shown, folder, tracker, seed)
    profiler = StepProfiler(folder, config.train.profile, config.train.profile_ranks, world.rank)
    record = Record(folder, inputs.identity, tracker, throughput, phases, owner, showing, profiler)
    trainer = Trainer(config, engine, objective, feeds, record, stop, world)
    if checkpoint is not None:
        trainer.resume(checkpoint.state)
    return trainer


def _start(model: Model, train: TrainConfig, inputs: Inputs, world: World) -> None:
    """Fills the parameters for the first step; nothing where a checkpoint overwrites all of them."""
    if inputs.checkpoint is not None:
        return
    if inputs.pretrained is None:
        model.initialize(train.seed)
        return
    model.layers.filled = None  # what the folder lacks is drawn first: nothing is dealt out before all is read
    model.initialize(train.seed)
    inputs.pretrained.load_into(model, train.load_not_finite)
    for note in inputs.pretrained.notes() if world.is_main else ():
        print(note, file=sys.stderr)


def _throughput(objective: Objective, model: Model, world: World) -> Throughput:
    import torch

    from pretraining.run.throughput import Throughput, device_peak

    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    return Throughput(objective.unit, objective.flops_per_unit(model), world.size, device_peak(name))


def freeze(model: Model, patterns: Iterable[str]) -> None:
    """Parameters whose names match a pattern are not trained. Raises InputError for a pattern that matches none."""
    parameters = dict(model.named_parameters())
    unmatched = [p for p in patterns if not any(fnmatch(name, p) for name in parameters)]
    if unmatched:
        raise InputError(
            f"train.freeze: no parameter is named {' or '.join(unmatched)}; there are "
            f"{', '.join(list(parameters)[:5])}, ..."
        )
    for name, parameter in parameters.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise InputError(f"train.freeze={patterns} leaves nothing to train")


def _load_into(engine: Engine, checkpoint: Checkpoint, config: RunConfig, run: Identity, world: World) -> Checkpoint:
    """-> the checkpoint that the engine is at now: the newest whose bytes are undamaged, or the one that was named."""
    run_on_all_ranks(world, partial(check_fits, checkpoint, engine.tensors()))
    try:
        _load(checkpoint, engine, config.train.load_not_finite, world)
    except InputError as error:
        older = agree_on_checkpoint(world, partial(older_checkpoint, config, checkpoint))
        if older is None:
            raise
        print(f"skipped {checkpoint.folder.name}: {error}", file=sys.stderr)
        run_on_all_ranks(world, partial(require_of_run, older, run))
        return _load_into(engine, older, config, run, world)
    engine.after_load()
    return checkpoint


def _load(checkpoint: Checkpoint, engine: Engine, load_not_finite: bool, world: World) -> None:
    """Raises InputError on all ranks."""

    def load() -> str | None:
        """What to report."""
        try:
            load_tensors(checkpoint, engine.tensors())
        except NotFinite as error:
            if not load_not_finite:
                raise
            return str(error)
        return None

    told = [text for text in world.gather_texts(run_on_all_ranks(world, load)) if text is not None]
    if told and world.is_main:
        print(f"warning: {told[0]}; it is loaded, as train.load_not_finite=true asks", file=sys.stderr)


def _open_run_dir(
    config: RunConfig, inputs: Inputs, checkpoint: Checkpoint | None, world: World, run_dir: Path, began: float
) -> Tracker:
    """What an earlier run wrote beyond the checkpoint is cut off or set aside."""
    from pretraining.run.starts import ThisStart
    from pretraining.run.tracking import NullTracker, RunTracker

    prove_shared(world, run_dir / "checkpoints")
    hosts = [host for host in world.gather_texts(socket.gethostname()) if host is not None]
    if not world.is_main:
        return NullTracker()
    start = None if checkpoint is None else checkpoint.state["step"]
    write_config(config, run_dir, inputs.identity, checkpoint)
    set_aside_newer(run_dir / "checkpoints", start)
    this = ThisStart(began, world.size, tuple(dict.fromkeys(hosts)), code_facts(config.modules)["the code"])
    settings = recorded_config(config) | {
        "derived": _derived(config, inputs, world),
        "layout": {str(axis): world.mesh.size(axis) for axis in Axis},
        "cluster": {"hosts": list(this.hosts), "ranks": this.ranks, "device": world.device.type, "job": this.job},
        "code": this.code,
        "manifest": inputs.data.fingerprint,
    }
    return RunTracker(config.tracking, run_dir, start, config.train.steps, settings, this)


def _derived(config: RunConfig, inputs: Inputs, world: World) -> dict[str, int]:
    """What a run's numbers follow from and its config does not say."""
    from pretraining.models.shapes import shapes_of

    whole = shapes_of(config.model, inputs.data.vocabulary, inputs.objective)  # a rank may hold parts of its tensors
    outputs = "vocab_size" if inputs.data.tokenizer else "classes"
    return {
        "parameters": sum(p.numel() for p in whole.parameters()),
        "world_size": world.size,
        outputs: inputs.data.vocabulary.outputs,
    }


def make_stream(config: RunConfig, data: Prepared, objective: Objective, split: str) -> SequenceSource[Any]:
    """The order of one split's sequences."""
    least = MIXED_BATCHES * config.train.global_batch_size
    return data.source(split, objective.packing_of, config.train.seed, least)


def _feeds(config: RunConfig, inputs: Inputs, world: World) -> Feeds:
    from data_pipeline.loader import RankSlice
    from pretraining.feeds import Feeds

    train, mesh, objective = config.train, world.mesh, inputs.objective
    return Feeds(
        source=inputs.training,
        validation_source=inputs.validation,
        objective=objective,
        share=RankSlice(train.global_batch_size, train.micro_batch_size, mesh.batch_rank, mesh.batch_ranks),
        num_workers=config.data.num_workers,
        pin_memory=world.device.type == "cuda",
    )

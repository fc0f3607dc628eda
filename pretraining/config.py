"""The typed configuration of a training run, and the checks across its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StringConstraints

from data_pipeline.common.compose import compose_config, conf_dir
from data_pipeline.common.fields import (
    NonNegative,
    NonNegativeFloat,
    PathText,
    PickedBy,
    Positive,
    PositiveFloat,
    Probability,
    Smoothing,
    configclass,
    to_dict,
    used_with,
)
from data_pipeline.common.registry import load
from pretraining.engines.config import PROVEN_TENSOR_PARALLEL, EngineConfig
from pretraining.models.config import ModelConfig, TextConfig
from pretraining.models.registry import FAMILIES
from pretraining.models.roles import Role
from pretraining.models.vision import VisionConfig
from pretraining.objectives.registry import OBJECTIVES, objectives_for
from pretraining.objectives.registry import NamedConfig as ObjectiveConfig
from pretraining.optim.config import OptimizerConfig
from pretraining.optim.schedules import ScheduleConfig
from pretraining.patches import PatchGrid
from pretraining.synonyms import SYNONYMS

NO_MEMBERS: Mapping[str, str] = {}
# Part of keys in metrics.jsonl, and of what a shard is called in messages
SourceName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
MIXED_BATCHES = 4  # global batches that a window of the data holds at least, where the data has so many


@configclass
class DataConfig:
    """Which prepared data is read, and how.

    name: shards is one folder that pretrain-data wrote, mixture several.
    path: the folder that pretrain-data wrote; required.
    sources: the folders of a mixture by name, as in {en: DIR, de: DIR}, prepared with one tokenizer. Each is walked in
        its own order; they may change when a run is continued, and each goes on where it stands.
    smoothing: a corpus' share of the samples goes by its tokens (images, where it has none) to this power: 1 is by
        size, 0.7 and 0.3 lift small ones.
    shares: of the samples, as in {en: 2, de: 1}, by their proportions; null takes them from the sizes.
    seq_len: tokens of a sequence; null means model.max_seq_len. For text only.
    num_workers: processes of each rank that make samples; 0 makes them in the training process.
    window_blocks: blocks of the data whose documents are shuffled and packed together, and whose sequences are handed
        out in random order. Where so many hold less than four global batches, as many as hold four are taken; the last
        of an epoch are shared among its windows, so that these have up to twice as many.
    """

    name: Literal["shards", "mixture"] = "shards"
    path: Annotated[PathText | None, used_with("name", "shards")] = None
    sources: Annotated[dict[SourceName, PathText], used_with("name", "mixture")] = Field(default_factory=dict)
    smoothing: Annotated[Smoothing, used_with("name", "mixture"), used_with("shares", None)] = 1.0
    shares: Annotated[dict[SourceName, PositiveFloat] | None, used_with("name", "mixture")] = None
    seq_len: Positive | None = None
    num_workers: NonNegative = 2
    window_blocks: Positive = 64

    @property
    def folders(self) -> Mapping[str, str]:
        """What pretrain-data wrote, by the names of a mixture's corpora; of a single one by ''."""
        return self.sources if self.name == "mixture" else {"": self.path or ""}

    def problems(self) -> list[str]:
        if self.name == "shards":
            return [] if self.path else ["data.path is missing: the folder that pretrain-data wrote"]
        if not self.sources:
            return ["data.sources is missing: folders that pretrain-data wrote, by name, as in {en: DIR, de: DIR}"]
        if empty := [name for name, folder in self.sources.items() if not folder]:
            return [f"data.sources.{empty[0]} is missing: a folder that pretrain-data wrote"]
        if self.shares is not None and self.shares.keys() != self.sources.keys():
            names, others = ", ".join(sorted(self.sources)), ", ".join(sorted(self.shares))
            return [f"data.shares names {others}, data.sources {names}: each corpus has one share"]
        return []


@configclass
class TrainConfig:
    """How long and in which steps a model is trained. What ends in _every counts steps.

    steps: optimizer steps of the whole run.
    global_batch_size: sequences, or images, of one optimizer step over all ranks.
    micro_batch_size: of these, how many a rank computes at once; gradients are accumulated over the others.
    grad_clip: largest norm of the gradient; 0 does not clip.
    dropout_until: share of the steps after which nothing is dropped; BART was trained with 0.9.
    precision: what is computed in; weights, optimizer state and reductions stay fp32.
    log_every: a line of metrics after so many steps, and for the first and the last; 0 for none.
    eval_every: an evaluation after so many steps, before the first and after the last; 0 for none.
    eval_batches: global batches of the validation data in one evaluation, no sequence twice; null takes all of them.
    checkpoint_every: a checkpoint after so many steps; 0 saves only the one at the end.
    keep_last: how many of the newest checkpoints are kept.
    keep_every: the checkpoint of every n-th step is kept as well; 0 for none.
    seed: decides order of the data, corruption, initial weights and dropout.
    resume: auto continues run_dir where it stands, never starts a new run, a path starts from that checkpoint,
      or from the newest one of the run there.
    load_not_finite: load a checkpoint, or model.init_from, that holds NaN or infinities, to look at it; that is told.
    deterministic: use only deterministic kernels, for bitwise equal runs on GPUs.
    freeze: patterns of names of parameters that are not trained, as in ['*embedding*'].
    timeout_seconds: how long a rank waits for the others, at the start and in every collective, and a signal for a rank
        that does not answer; then the run ends. A step must be shorter.
    watchdog_seconds: without progress, until it is told which rank is waited for, where, and its stack.
    on_spike: what follows a loss spike: log tells and records its batch; rollback goes on from the last checkpoint
        before it, without the batches since.
    profile: steps of which torch's profiler writes a trace into run_dir/profile/, on GPUs also a snapshot of memory.
    profile_ranks: the ranks that write them.
    """

    steps: Positive = 1000
    global_batch_size: Positive = 64
    micro_batch_size: Positive = 8
    grad_clip: NonNegativeFloat = 1.0
    dropout_until: Probability = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    log_every: NonNegative = 10
    eval_every: NonNegative = 200
    eval_batches: Positive | None = 4
    checkpoint_every: NonNegative = 200
    keep_last: Positive = 3
    keep_every: NonNegative = 0
    seed: NonNegative = 1
    resume: PathText = "auto"
    load_not_finite: bool = False
    deterministic: bool = False
    freeze: list[str] = Field(default_factory=list)
    timeout_seconds: Positive = 300
    watchdog_seconds: PositiveFloat = 60.0
    on_spike: Literal["log", "rollback"] = "log"
    profile: list[Positive] = Field(default_factory=list)
    profile_ranks: list[NonNegative] = Field(default_factory=lambda: [0])


@configclass
class TrackingConfig:
    """What is logged to Weights & Biases; metrics.jsonl and loss.png are written in any case.

    wandb: offline writes run_dir/wandb, which `wandb sync` uploads later; null does as WANDB_MODE says, else offline.
    trackio: log to trackio, a dashboard on this machine, too; `tracking=trackio` switches W&B off.
    project: the project of the run; null takes WANDB_PROJECT, else pretraining.
    run_name: the run's name; null takes WANDB_NAME, else that of run_dir.
    tags: the run's tags; none takes those of WANDB_TAGS.
    layers_every: norms of gradients and updates by layer after so many steps, with LAMB's trust ratios and Adafactor's
        clipping; 0 for none. Such a step takes one more copy of the weights that the rank updates.
    checkpoints: each checkpoint becomes an artifact of the W&B run that refers to its folder; nothing of it is sent.
    samples: validation samples on which each evaluation shows what the model does, in run_dir/samples; 0 for none.
    """

    wandb: Literal["online", "offline", "disabled"] | None = None
    trackio: bool = False
    project: str | None = None
    run_name: str | None = None
    tags: list[str] = Field(default_factory=list)
    checkpoints: bool = False
    layers_every: NonNegative = 0
    samples: NonNegative = 4


@configclass
class RunConfig:
    """Everything that decides a run.

    model: the shape of the model.
    objective: what it learns, and how samples are made for it.
    data: the prepared data.
    optimizer: how gradients become updates.
    scheduler: the learning rate over the steps, relative to optimizer.lr.
    engine: how tensors and work are laid out over ranks.
    train: steps, batches, precision, evaluation, checkpoints.
    tracking: Weights & Biases.
    run_dir: the run's folder, continued if it holds a run; null makes a new one below runs/.
    inspect: print so many training samples as the model sees them, and end.
    modules: Python modules to import first; they may add families, objectives and optimizers to the tables.
    """

    model: Annotated[ModelConfig, PickedBy("pretraining.models.registry:FAMILIES")]
    objective: Annotated[ObjectiveConfig, PickedBy("pretraining.objectives.registry:OBJECTIVES")]
    optimizer: Annotated[OptimizerConfig, PickedBy("pretraining.optim.registry:OPTIMIZERS")]
    scheduler: Annotated[ScheduleConfig, PickedBy("pretraining.optim.schedules:SCHEDULES")]
    engine: EngineConfig
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    run_dir: PathText | None = None
    inspect: NonNegative = 0
    modules: list[str] = Field(default_factory=list)

    @property
    def data_kind(self) -> Literal["text", "pairs", "images"]:
        """What samples are made of."""
        return OBJECTIVES[self.objective.name].data

    @property
    def grid(self) -> PatchGrid:
        """The patches of an image."""
        assert self.data_kind == "images", "text has no patches"
        return cast(VisionConfig, self.model).grid

    @property
    def seq_len(self) -> int:
        """Tokens of a text sequence."""
        assert self.data_kind != "images", "an image has no sequence length"
        return self.data.seq_len or cast(TextConfig, self.model).max_seq_len

    def problems(self, ranks: int, members: Mapping[str, str] = NO_MEMBERS) -> list[str]:
        """Contradictions between keys for a run on so many ranks, each reported with its values.

        members: the one chosen of each group, where known.
        """
        problems = self.model.problems() + self.engine.problems()
        unfit = self._fit_problems(members)
        problems += self.data.problems()
        problems += unfit or self._sample_problems()
        if self.engine.tensor_parallel not in PROVEN_TENSOR_PARALLEL[self.engine.name]:  # which was reported
            return problems
        problems += self._roll_back_problems() + self._profile_problems(ranks) + self._dropout_problems()
        return problems + self._layout_problems(check_length=not unfit) + self._batch_problems(ranks)

    def _fit_problems(self, members: Mapping[str, str]) -> list[str]:
        role, name = OBJECTIVES[self.objective.name].role, self.model.name
        fitting = objectives_for(self.model.roles(FAMILIES[name].roles))
        if self.objective.name in fitting:
            return []
        model = f"model={members['model']}" if "model" in members else f"model.name={name}"
        objectives = " or ".join(f"objective={objective}" for objective in fitting)
        models = [m for family, entry in FAMILIES.items() if role in entry.roles for m in presets(family, role)]
        return [
            f"objective={self.objective.name} does not fit {model}: {objectives or 'no objective'} fits {model}; "
            f"objective={self.objective.name} fits {' or '.join(models) or 'no model yet'}"
        ]

    def _sample_problems(self) -> list[str]:
        length = self.data.seq_len
        if length is None:
            return []
        if self.data_kind == "images":
            return [f"data.seq_len={length} has no effect on images: model.image_size sets their size"]
        longest = cast(TextConfig, self.model).max_seq_len
        if length != longest and self.model.fixed_length:
            return [f"data.seq_len={length}: this model trains on sequences of model.max_seq_len={longest} only"]
        return [f"data.seq_len={length} is longer than model.max_seq_len={longest}"] if length > longest else []

    def _profile_problems(self, ranks: int) -> list[str]:
        train = self.train
        late, absent = max(train.profile, default=0), max(train.profile_ranks, default=0)
        problems = [f"train.profile={train.profile}: the run has {train.steps} steps"] if late > train.steps else []
        if absent >= ranks and train.profile:
            problems.append(f"train.profile_ranks={train.profile_ranks}: the last rank is {ranks - 1}")
        return problems

    def _dropout_problems(self) -> list[str]:
        if self.train.dropout_until == 1.0 or not self.model.activation_checkpointing:
            return []
        return [
            f"train.dropout_until={self.train.dropout_until}: with model.activation_checkpointing=true it is not "
            "supported, what a backward computes again would be dropped from"
        ]

    def _roll_back_problems(self) -> list[str]:
        train = self.train
        if train.on_spike != "rollback" or (train.checkpoint_every and train.keep_last > 1):
            return []
        return [
            "train.on_spike=rollback needs checkpoints from before a spike: train.checkpoint_every above 0 and "
            "train.keep_last above 1"
        ]

    def _layout_problems(self, check_length: bool) -> list[str]:
        parts = self.engine.tensor_parallel
        problems = [
            f"{key}={size} is not divisible by engine.tensor_parallel={parts}"
            for key, size in self.model.split_over_ranks().items()
            if size % parts
        ]
        problems += self.model.layout_problems(self.engine.name, self.engine.zero_stage, parts)
        if not self.engine.sequence_parallel or not check_length:
            return problems
        images = self.data_kind == "images"
        length = cast(VisionConfig, self.model).length if images else self.seq_len
        if length % parts:
            hint = "the ViT with model.pooling=mean has no class token" if images else "choose another data.seq_len"
            problems.append(
                f"engine.sequence_parallel=true: sequences of {length} tokens are not divisible by "
                f"engine.tensor_parallel={parts}; {hint}"
            )
        return problems

    def _batch_problems(self, ranks: int) -> list[str]:
        parts = self.engine.tensor_parallel
        if ranks % parts:
            return [f"the number of ranks ({ranks}) is not divisible by engine.tensor_parallel={parts}"]
        data_ranks, train = self.engine.data_parallel(ranks), self.train
        if train.global_batch_size % (train.micro_batch_size * data_ranks) == 0:
            return self.model.accumulation_problems(train.global_batch_size // (train.micro_batch_size * data_ranks))
        return [
            f"train.global_batch_size={train.global_batch_size} is not divisible by train.micro_batch_size="
            f"{train.micro_batch_size} x {data_ranks} data-parallel rank{'s' if data_ranks > 1 else ''}"
        ]


def presets(family: str, role: Role) -> list[str]:
    """The members of the group model that begin a family's sizes in this role, as they are typed; model.name of one
    without."""
    import yaml

    entry, found = FAMILIES[family], []
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        if values.get("name") != family:
            continue
        # a family of one role plays it in every size; of another the config says which
        if len(entry.roles) == 1 or role in load(entry.config)(**values).roles(entry.roles):
            found.append(f"model={file.stem}")
    return found or [f"model.name={family}"]


def load_config(arguments: Sequence[str], ranks: int = 1) -> RunConfig:
    """conf/pretrain.yaml with these Hydra overrides, for a run on so many ranks. Raises InputError that lists every
    problem."""
    return compose_config(
        "pretrain", arguments, RunConfig, lambda config, members: config.problems(ranks, members), SYNONYMS
    )


IDENTITY = {
    "model": ("activation_checkpointing",),
    "objective": (),
    "optimizer": (),
    "scheduler": None,
    "data": ("num_workers", "path", "sources", "smoothing", "shares"),
    "engine": None,
    "tracking": None,
}
IDENTITY_OF_TRAIN = ("seed", "global_batch_size", "freeze")


def identity(config: RunConfig, data_content: str) -> dict[str, Any]:
    """What must stay as it is when a run is continued, flat and plain: {"model.num_layers": 12, ...}.

    data_content: a hash of what of the data must stay as it is.
    """
    values = to_dict(config)
    flat: dict[str, Any] = {f"train.{key}": values["train"][key] for key in IDENTITY_OF_TRAIN}
    flat["data.content"] = data_content
    for group, free in IDENTITY.items():
        if free is not None:
            flat.update({f"{group}.{k}": v for k, v in values[group].items() if k not in free})
    return flat


COURSE_OF_TRAIN = ("steps", "grad_clip", "precision", "eval_batches", "dropout_until")


def course(config: RunConfig) -> dict[str, Any]:
    """What may change when a run is continued and then changes its numbers, so that it is told; flat and plain.

    What is neither here nor in `identity` changes no loss: layouts, workers, micro-batches, what is logged and kept.
    """
    values = to_dict(config)
    flat: dict[str, Any] = {f"train.{key}": values["train"][key] for key in COURSE_OF_TRAIN}
    flat |= {f"scheduler.{key}": value for key, value in values["scheduler"].items()}
    if config.data.name == "mixture":
        flat |= {f"data.{key}": values["data"][key] for key in ("smoothing", "shares")}
    return {**flat, "modules": values["modules"]}

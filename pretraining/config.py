"""The typed configuration of a training run, and the checks across its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from data_pipeline.common.compose import compose_config
from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, NonNegativeFloat, Positive, configclass, to_dict
from pretraining.engines.config import EngineConfig
from pretraining.models.registry import FAMILIES, ModelConfig
from pretraining.models.vision import VisionConfig
from pretraining.objectives import ObjectiveConfig
from pretraining.objectives.registry import objectives_for
from pretraining.optim.config import OptimizerConfig
from pretraining.optim.schedules import ScheduleConfig
from pretraining.parallel.launch import read_launch


@configclass
class DataConfig:
    """path: the folder that pretrain-data wrote. seq_len: tokens of a sequence (null: model.max_seq_len).
    window_blocks: blocks whose documents are shuffled and packed together."""

    name: Literal["shards"]
    path: str | None
    seq_len: Positive | None = None
    num_workers: NonNegative = 2
    window_blocks: Positive = 64


@configclass
class TrainConfig:
    """global_batch_size: sequences of one optimizer step over all ranks. eval_batches: global batches of one
    evaluation. *_every counts steps; eval_every=0 and checkpoint_every=0 switch it off, save the checkpoint at the
    end. keep_last and keep_every: the newest checkpoints, and those of every n-th step, are kept (0: none). freeze:
    patterns of names of parameters that stay as they are."""

    steps: Positive
    global_batch_size: Positive
    micro_batch_size: Positive
    grad_clip: NonNegativeFloat
    precision: Literal["fp32", "bf16", "fp16"]
    log_every: Positive
    eval_every: NonNegative
    eval_batches: Positive
    checkpoint_every: NonNegative
    keep_last: Positive
    keep_every: NonNegative
    seed: NonNegative
    resume: str
    deterministic: bool
    freeze: list[str]


@configclass
class TrackingConfig:
    wandb: Literal["online", "offline", "disabled"]
    project: str
    run_name: str | None = None
    tags: list[str] = Field(default_factory=list)


@configclass
class RunConfig:
    """Everything that decides a run. run_dir: null makes a new folder below runs/. inspect: shows so many training
    examples and ends."""

    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    scheduler: ScheduleConfig
    engine: EngineConfig
    train: TrainConfig
    tracking: TrackingConfig
    run_dir: str | None = None
    inspect: NonNegative = 0

    @property
    def data_kind(self) -> Literal["text", "images"]:
        """What the model reads."""
        return "images" if isinstance(self.model, VisionConfig) else "text"

    @property
    def sample_shape(self) -> Any:
        """What an objective's samples must fit: tokens of a sequence, or the PatchGrid of an image."""
        if isinstance(self.model, VisionConfig):
            return self.model.grid
        return self.seq_len

    @property
    def seq_len(self) -> int:
        """Tokens of a text sequence."""
        assert not isinstance(self.model, VisionConfig), "an image has no sequence length"
        return self.data.seq_len or self.model.max_seq_len

    def faults(self) -> list[str]:
        """Contradictions between keys, each told with its values."""
        faults = self.model.problems() + self.engine.faults()
        if self.objective.name not in (fitting := objectives_for(FAMILIES[self.model.name].roles)):
            faults.append(
                f"objective={self.objective.name} does not fit model.name={self.model.name}: "
                f"objective={' or '.join(fitting)} does"
            )
        if self.data.path is None:
            faults.append("data.path is missing: the folder that pretrain-data wrote")
        return faults + self._sample_faults() + self._layout_faults() + self._batch_faults()

    def _sample_faults(self) -> list[str]:
        faults, length = [], self.data.seq_len
        if isinstance(self.model, VisionConfig):
            if length is not None:
                faults.append(f"data.seq_len={length} is for text; images are sized by model.image_size")
        elif length is not None and length > self.model.max_seq_len:
            faults.append(f"data.seq_len={length} is longer than model.max_seq_len={self.model.max_seq_len}")
        return faults

    def _layout_faults(self) -> list[str]:
        parts = self.engine.tensor_parallel
        faults = [
            f"{key}={size} does not divide by engine.tensor_parallel={parts}"
            for key, size in self.model.split_over_ranks().items()
            if size % parts
        ]
        length = self.model.length if isinstance(self.model, VisionConfig) else self.seq_len
        if self.engine.sequence_parallel and length % parts:
            cure = "choose another data.seq_len" if self.data_kind == "text" else "a ViT with model.pooling=mean does"
            faults.append(
                f"engine.sequence_parallel=true: sequences of {length} tokens do not divide by "
                f"engine.tensor_parallel={parts}; {cure}"
            )
        return faults

    def _batch_faults(self) -> list[str]:
        try:
            ranks = read_launch().size
        except InputError as error:
            return [str(error)]
        if ranks % self.engine.tensor_parallel:
            return [f"{ranks} ranks do not divide by engine.tensor_parallel={self.engine.tensor_parallel}"]
        data_ranks = self.engine.data_parallel(ranks)
        train = self.train
        if train.global_batch_size % (train.micro_batch_size * data_ranks) == 0:
            return []
        return [
            f"train.global_batch_size={train.global_batch_size} does not divide by train.micro_batch_size="
            f"{train.micro_batch_size} x {data_ranks} data-parallel rank{'s' if data_ranks > 1 else ''}"
        ]


def load_config(overrides: Sequence[str]) -> RunConfig:
    """conf/pretrain.yaml with these Hydra overrides. Raises InputError that lists every fault."""
    return compose_config("pretrain", overrides, RunConfig)


IDENTITY = {
    "model": ("activation_checkpointing",),
    "objective": (),
    "optimizer": (),
    "scheduler": None,
    "data": ("num_workers", "path"),
    "engine": None,
    "tracking": None,
}
IDENTITY_OF_TRAIN = ("seed", "global_batch_size", "freeze")


def identity(config: RunConfig, data_fingerprint: str) -> dict[str, Any]:
    """What must stay as it is when a run is continued, flat and plain: {"model.num_layers": 12, ...}."""
    values = to_dict(config)
    flat: dict[str, Any] = {f"train.{key}": values["train"][key] for key in IDENTITY_OF_TRAIN}
    flat["data.content"] = data_fingerprint
    for group, free in IDENTITY.items():
        if free is not None:
            flat.update({f"{group}.{k}": v for k, v in values[group].items() if k not in free})
    return flat

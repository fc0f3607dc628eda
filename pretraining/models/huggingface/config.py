"""The options of an architecture of transformers; what its config class says of them is looked up in `problems`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Literal

from pydantic import Field, JsonValue, model_validator
from pydantic_core import ArgsKwargs

from data_pipeline.common.fields import Fraction, PathText, Positive, configclass
from data_pipeline.common.registry import load
from pretraining.models.config import ModelConfig
from pretraining.models.huggingface.architectures import KNOWN, ROLE_BY_ENDING, facts_of, role_of
from pretraining.models.roles import Role
from pretraining.patches import PatchGrid

WITH_FILE = "pretraining.models.huggingface.config_file:with_file"
PROBLEMS = "pretraining.models.huggingface.checks:problems_of"  # it imports transformers, which takes seconds


@configclass
class HuggingFaceConfig(ModelConfig):
    """A model class of transformers, trained by the objective of its role: ...ForMaskedLM, ...LMHeadModel,
    ...ForConditionalGeneration, ...ForImageClassification.

    architecture: the class, as config.json's architectures name it; with config_json it may be left out.
    config_json: a Hugging Face folder, or a config.json, which architecture and settings are read from, once: the run's
        config.yaml has them. What stands beside it counts more.
    settings: keys of its config class, as config.json has them; what it leaves out is that class's default.
    num_layers, hidden_size, num_heads, intermediate_size: the config class's keys of that meaning, of both encoder and
        decoder; null leaves them to settings.
    max_seq_len: the most tokens that the model reads at once.
    vocab_size: null takes that of the prepared data; a number must agree with it.
    image_size: pixels along one side, of a model of images.
    dropout: every rate of the config class between its layers, whatever that class's default.
    attention_dropout: rate of attention's weights; null means dropout.
    """

    name: Literal["huggingface"]
    _: KW_ONLY
    architecture: str = ""
    config_json: PathText | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    num_layers: Positive | None = None
    hidden_size: Positive | None = None
    num_heads: Positive | None = None
    intermediate_size: Positive | None = None
    max_seq_len: Positive = 512
    vocab_size: Positive | None = None
    image_size: Positive = 224
    dropout: Fraction = 0.0
    attention_dropout: Fraction | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_config_json(cls, given: ArgsKwargs | dict[str, object]) -> ArgsKwargs | dict[str, object]:
        stated = dict((given.kwargs or {}) if isinstance(given, ArgsKwargs) else given)
        if (path := stated.pop("config_json", None)) is None:
            return given
        found: dict[str, object] = load(WITH_FILE)(str(path), stated)
        return ArgsKwargs(given.args, found) if isinstance(given, ArgsKwargs) else found

    @property
    def attention_dropout_rate(self) -> float:
        """attention_dropout, with null resolved."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def grid(self) -> PatchGrid:
        """An image as one patch: what the class cuts it into is up to the class."""
        return PatchGrid(self.image_size, self.image_size)

    @property
    def packs_documents(self) -> bool:
        return facts_of(self.architecture).packs

    @property
    def longest_targets(self) -> int | None:
        return self.max_seq_len

    @property
    def fixed_length(self) -> bool:
        return facts_of(self.architecture).fixed_length

    def roles(self, of_family: frozenset[Role]) -> frozenset[Role]:
        if not self.architecture:
            return of_family
        role = role_of(self.architecture)
        return frozenset() if role is None else frozenset({role})

    def stated_outputs(self) -> dict[str, int]:
        return {} if self.vocab_size is None else {"model.vocab_size": self.vocab_size}

    def split_over_ranks(self) -> dict[str, int]:
        return {}

    def problems(self) -> list[str]:
        if not self.architecture:
            return [
                "model.architecture is missing: a class of transformers, or model.config_json=FOLDER that names one"
            ]
        if role_of(self.architecture) is None:
            endings = ", ".join(f"...{ending}" for ending in ROLE_BY_ENDING)
            return [
                f"model.architecture={self.architecture}: no objective is known for it, only for {endings} and "
                f"{', '.join(name for name in KNOWN if not name.endswith(tuple(ROLE_BY_ENDING)))}"
            ]
        found: list[str] = load(PROBLEMS)(self)
        return found

    def accumulation_problems(self, micro_batches: int) -> list[str]:
        if micro_batches == 1 or not facts_of(self.architecture).batch_norm:
            return []
        return [
            f"train.global_batch_size and train.micro_batch_size make {micro_batches} micro-batches on each rank: "
            f"model.architecture={self.architecture} normalizes over the whole global batch, which must be one "
            "micro-batch on each rank"
        ]

    def layout_problems(self, engine: str, zero_stage: int, tensor_parallel: int) -> list[str]:
        name = self.architecture
        if tensor_parallel > 1:
            return [
                f"engine.tensor_parallel={tensor_parallel} is not supported with model.name=huggingface: the layers of "
                f"transformers' {name} are whole; use engine=torch or engine=deepspeed with engine.tensor_parallel=1"
            ]
        if engine != "deepspeed" or zero_stage in facts_of(name).zero_stages:
            return []
        return [
            f"engine=deepspeed with engine.zero_stage={zero_stage} is not proven for model.architecture={name}; "
            "use engine=torch"
        ]

"""The tables that `name` in a group picks from: the config class of each choice, and what fits what.

To be replaced, one line each in pretraining/config.py, by models/registry.py, objectives/registry.py and
optim/registry.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pretraining.models.roles import Role


class ObjectiveConfig(Protocol):
    """The config of any objective."""

    @property
    def name(self) -> str: ...

    def build(self, *args: Any) -> Any: ...


class OptimizerConfig(Protocol):
    """The config of any optimizer."""

    @property
    def name(self) -> str: ...

    def build(self) -> Any: ...


@dataclass(frozen=True)
class Family:
    config: str
    roles: frozenset[Role]


@dataclass(frozen=True)
class ObjectiveEntry:
    config: str
    role: Role
    data: Literal["text", "images"]


@dataclass(frozen=True)
class OptimizerEntry:
    config: str


FAMILIES: dict[str, Family] = {
    "gpt": Family("pretraining.models.gpt.config:GPTConfig", frozenset({Role.DECODER})),
    "bert": Family("pretraining.models.bert.config:BertConfig", frozenset({Role.TOKEN_ENCODER})),
    "t5": Family("pretraining.models.t5.config:T5Config", frozenset({Role.ENCODER_DECODER})),
    "vit": Family("pretraining.models.vit.config:ViTConfig", frozenset({Role.IMAGE_ENCODER})),
    "mae": Family("pretraining.models.mae.config:MAEConfig", frozenset({Role.MASKED_IMAGE_AUTOENCODER})),
}
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "causal_lm": ObjectiveEntry("pretraining.objectives.text.causal_lm:CausalLMConfig", Role.DECODER, "text"),
    "masked_lm": ObjectiveEntry("pretraining.objectives.text.masked_lm:MaskedLMConfig", Role.TOKEN_ENCODER, "text"),
    "span_corruption": ObjectiveEntry(
        "pretraining.objectives.sequence.span_corruption:SpanCorruptionConfig", Role.ENCODER_DECODER, "text"
    ),
    "image_classification": ObjectiveEntry(
        "pretraining.objectives.image.classification:ImageClassificationConfig", Role.IMAGE_ENCODER, "images"
    ),
    "masked_image": ObjectiveEntry(
        "pretraining.objectives.image.masked_image:MaskedImageConfig", Role.MASKED_IMAGE_AUTOENCODER, "images"
    ),
}
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "adamw": OptimizerEntry("pretraining.optim.config:AdamWConfig"),
    "lamb": OptimizerEntry("pretraining.optim.config:LambConfig"),
    "adafactor": OptimizerEntry("pretraining.optim.config:AdafactorConfig"),
}

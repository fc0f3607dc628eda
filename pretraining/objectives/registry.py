"""The table of objectives: `name` in an objective's config picks a line of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from data_pipeline.common.registry import load
from pretraining.models.roles import Role
from pretraining.objectives.base import Objective, SampleSpec

DataKind = Literal["text", "pairs", "images"]


@dataclass(frozen=True)
class ObjectiveEntry:
    """config, objective: "module:Class", so that nothing is imported before it is chosen.

    role: what a model must be able to do.
    data: the kind of prepared data that samples are made of.
    beside: kinds that some corpora of a mixture may have as well.
    """

    config: str
    objective: str
    role: Role
    data: DataKind
    beside: tuple[DataKind, ...] = ()


OBJECTIVES: dict[str, ObjectiveEntry] = {
    "causal_lm": ObjectiveEntry(
        config="pretraining.objectives.text.causal_lm:CausalLMConfig",
        objective="pretraining.objectives.text.causal_lm:CausalLM",
        role=Role.DECODER,
        data="text",
    ),
    "recurrent_lm": ObjectiveEntry(
        config="pretraining.objectives.text.recurrent_lm:RecurrentLMConfig",
        objective="pretraining.objectives.text.recurrent_lm:RecurrentLM",
        role=Role.RECURRENT_DECODER,
        data="text",
    ),
    "masked_lm": ObjectiveEntry(
        config="pretraining.objectives.text.masked_lm:MaskedLMConfig",
        objective="pretraining.objectives.text.masked_lm:MaskedLM",
        role=Role.TOKEN_ENCODER,
        data="text",
    ),
    "replaced_token": ObjectiveEntry(
        config="pretraining.objectives.text.replaced_token:ReplacedTokenConfig",
        objective="pretraining.objectives.text.replaced_token:ReplacedToken",
        role=Role.GENERATOR_DISCRIMINATOR,
        data="text",
    ),
    "translation_lm": ObjectiveEntry(
        config="pretraining.objectives.text.translation_lm:TranslationLMConfig",
        objective="pretraining.objectives.text.translation_lm:TranslationLM",
        role=Role.TOKEN_ENCODER,
        data="pairs",
        beside=("text",),
    ),
    "bidirectional_lm": ObjectiveEntry(
        config="pretraining.objectives.text.bidirectional_lm:BidirectionalLMConfig",
        objective="pretraining.objectives.text.bidirectional_lm:BidirectionalLM",
        role=Role.BIDIRECTIONAL_DECODER,
        data="text",
    ),
    "permutation_lm": ObjectiveEntry(
        config="pretraining.objectives.sequence.permutation_lm:PermutationLMConfig",
        objective="pretraining.objectives.sequence.permutation_lm:PermutationLM",
        role=Role.PERMUTED_ENCODER,
        data="text",
    ),
    "span_corruption": ObjectiveEntry(
        config="pretraining.objectives.sequence.span_corruption:SpanCorruptionConfig",
        objective="pretraining.objectives.sequence.span_corruption:SpanCorruption",
        role=Role.ENCODER_DECODER,
        data="text",
    ),
    "denoising": ObjectiveEntry(
        config="pretraining.objectives.sequence.denoising:DenoisingConfig",
        objective="pretraining.objectives.sequence.denoising:Denoising",
        role=Role.ENCODER_DECODER,
        data="text",
    ),
    "translation": ObjectiveEntry(
        config="pretraining.objectives.sequence.translation:TranslationConfig",
        objective="pretraining.objectives.sequence.translation:Translation",
        role=Role.ENCODER_DECODER,
        data="pairs",
    ),
    "image_classification": ObjectiveEntry(
        config="pretraining.objectives.image.classification:ImageClassificationConfig",
        objective="pretraining.objectives.image.classification:ImageClassification",
        role=Role.IMAGE_ENCODER,
        data="images",
    ),
    "masked_image": ObjectiveEntry(
        config="pretraining.objectives.image.masked_image:MaskedImageConfig",
        objective="pretraining.objectives.image.masked_image:MaskedImage",
        role=Role.MASKED_IMAGE_AUTOENCODER,
        data="images",
    ),
}


class NamedConfig(Protocol):
    """The config of any objective."""

    @property
    def name(self) -> str: ...


def build_objective(config: NamedConfig, spec: SampleSpec) -> Objective:
    """Raises InputError where samples of this spec cannot be made."""
    built: Objective = load(OBJECTIVES[config.name].objective)(config, spec)
    return built


def objectives_for(roles: Collection[Role]) -> list[str]:
    """The names of the objectives that fit a model which plays these roles."""
    return [name for name, entry in OBJECTIVES.items() if entry.role in roles]

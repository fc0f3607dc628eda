"""What RunConfig.objective is read as: `name` in an objective's YAML picks its config class."""

from typing import Annotated

from pydantic import Field

from pretraining.objectives.image.classification import ImageClassificationConfig
from pretraining.objectives.image.masked_image import MaskedImageConfig
from pretraining.objectives.sequence.span_corruption import SpanCorruptionConfig
from pretraining.objectives.text.causal_lm import CausalLMConfig
from pretraining.objectives.text.masked_lm import MaskedLMConfig

ObjectiveConfig = Annotated[
    CausalLMConfig | MaskedLMConfig | SpanCorruptionConfig | ImageClassificationConfig | MaskedImageConfig,
    Field(discriminator="name"),
]

"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

from typing import Annotated

from pydantic import Field

from pretraining.objectives.causal_lm import CausalLMConfig
from pretraining.objectives.image_classification import ImageClassificationConfig
from pretraining.objectives.masked_image import MaskedImageConfig
from pretraining.objectives.masked_lm import MaskedLMConfig
from pretraining.objectives.span_corruption import SpanCorruptionConfig

ObjectiveConfig = Annotated[
    CausalLMConfig | MaskedLMConfig | SpanCorruptionConfig | ImageClassificationConfig | MaskedImageConfig,
    Field(discriminator="name"),
]
TRAINED_BY = {  # model.name -> the objectives that it fits
    "gpt": ("causal_lm",),
    "bert": ("masked_lm",),
    "t5": ("span_corruption",),
    "vit": ("image_classification",),
    "mae": ("masked_image",),
}

"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

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
TRAINED_BY = {  # model.name -> the objectives that it fits
    "gpt": ("causal_lm",),
    "bert": ("masked_lm",),
    "t5": ("span_corruption",),
    "vit": ("image_classification",),
    "mae": ("masked_image",),
}

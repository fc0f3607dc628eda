"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

from typing import Annotated

from pydantic import Field

from pretraining.objectives.causal_lm import CausalLMConfig
from pretraining.objectives.image_classification import ImageClassificationConfig
from pretraining.objectives.masked_image import MaskedImageConfig
from pretraining.objectives.masked_lm import MaskedLMConfig

ObjectiveConfig = Annotated[CausalLMConfig | MaskedLMConfig | ImageClassificationConfig | MaskedImageConfig,
                            Field(discriminator="name")]

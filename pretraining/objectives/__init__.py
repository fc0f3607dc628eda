"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

from typing import Annotated

from pydantic import Field

from pretraining.objectives.causal_lm import CausalLMConfig
from pretraining.objectives.masked_lm import MaskedLMConfig

ObjectiveConfig = Annotated[CausalLMConfig | MaskedLMConfig, Field(discriminator="name")]

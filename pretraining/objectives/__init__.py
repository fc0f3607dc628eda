"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

from typing import Annotated

from pydantic import Field

from pretraining.objectives.causal_lm import CausalLMConfig
from pretraining.objectives.span_corruption import SpanCorruptionConfig

ObjectiveConfig = Annotated[CausalLMConfig | SpanCorruptionConfig, Field(discriminator="name")]
TRAINED_BY = {"gpt": ("causal_lm",), "t5": ("span_corruption",)}  # model.name -> the objectives that it fits

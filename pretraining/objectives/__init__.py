"""The table of objectives: `name` in an objective's YAML picks its config class, which builds it."""

from pretraining.objectives.causal_lm import CausalLMConfig

ObjectiveConfig = CausalLMConfig

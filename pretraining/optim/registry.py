"""The table of optimizers: `name` in an optimizer's YAML picks a line. Strings: nothing heavy is imported before it is
chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from data_pipeline.common.registry import load

if TYPE_CHECKING:
    from pretraining.optim.base import UpdateRule


@dataclass(frozen=True)
class OptimizerEntry:
    """config: the dataclass of its keys, free of torch. update_rule: the UpdateRule that is built from one.

    schedule: the one that conf/optimizer/NAME.yaml brings unless another is chosen. rate: what the default rate is for.
    """

    config: str
    update_rule: str
    schedule: str | None = None
    rate: str = ""


OPTIMIZERS = {
    "adam": OptimizerEntry(
        "pretraining.optim.config:AdamConfig",
        "pretraining.optim.adam:Adam",
        schedule="inverse_sqrt",
        rate="Vaswani et al.'s for 512 features and a warm-up of 4000 steps, at 25000 tokens of either language",
    ),
    "adamw": OptimizerEntry(
        "pretraining.optim.config:AdamWConfig",
        "pretraining.optim.adamw:AdamW",
        schedule="warmup_cosine",
        rate="nanoGPT's for GPT-2 small at 480 sequences of 1024 tokens; small models take up to 2e-3",
    ),
    "lamb": OptimizerEntry(
        "pretraining.optim.config:LambConfig",
        "pretraining.optim.lamb:Lamb",
        schedule="warmup_polynomial",
        rate="for about a thousand steps of small batches; BERT's long runs have 5e-3 x sqrt(batch / 32768)",
    ),
    "adafactor": OptimizerEntry(
        "pretraining.optim.config:AdafactorConfig",
        "pretraining.optim.adafactor:Adafactor",
        schedule="constant",
        rate="T5's: at most 1 / sqrt(step), relative to the size of each parameter, at 128 sequences",
    ),
}


class NamedConfig(Protocol):
    """A config that was validated by the class that its name picks."""

    @property
    def name(self) -> str: ...


def build_update_rule(config: NamedConfig) -> UpdateRule:
    rule: UpdateRule = load(OPTIMIZERS[config.name].update_rule)(config)
    return rule

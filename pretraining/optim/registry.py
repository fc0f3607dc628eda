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
    """config: the dataclass of its keys, free of torch. update_rule: the UpdateRule that is built from one."""

    config: str
    update_rule: str


OPTIMIZERS = {
    "adamw": OptimizerEntry("pretraining.optim.config:AdamWConfig", "pretraining.optim.adamw:AdamW"),
    "lamb": OptimizerEntry("pretraining.optim.config:LambConfig", "pretraining.optim.lamb:Lamb"),
    "adafactor": OptimizerEntry("pretraining.optim.config:AdafactorConfig", "pretraining.optim.adafactor:Adafactor"),
}


class NamedConfig(Protocol):
    """A config that was validated by the class that its name picks."""

    @property
    def name(self) -> str: ...


def build_update_rule(config: NamedConfig) -> UpdateRule:
    rule: UpdateRule = load(OPTIMIZERS[config.name].update_rule)(config)
    return rule

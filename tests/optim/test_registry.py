"""The table of optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from data_pipeline.common.registry import load
from pretraining.optim.registry import OPTIMIZERS, OptimizerEntry, build_update_rule
from tests.optim.cases import CONFIGS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_names_a_config_of_its_name_and_what_is_built_from_it(name: str) -> None:
    config = next(c for c in CONFIGS.values() if c.name == name)
    assert type(config) is load(OPTIMIZERS[name].config)
    assert type(build_update_rule(config)) is load(OPTIMIZERS[name].update_rule)


@dataclass(frozen=True)
class ToyConfig:
    name: str = "toy"
    lr: float = 1.0


class Toy:
    def __init__(self, config: ToyConfig) -> None:
        self.config = config


def test_another_optimizer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = OptimizerEntry(f"{__name__}:ToyConfig", f"{__name__}:Toy")
    monkeypatch.setitem(OPTIMIZERS, "toy", entry)
    assert type(build_update_rule(ToyConfig())).__name__ == "Toy"

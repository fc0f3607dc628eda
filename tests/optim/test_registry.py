"""The table of optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from data_pipeline.common.registry import load
from pretraining.config import load_config
from pretraining.optim.registry import OPTIMIZERS, OptimizerEntry, build_update_rule
from pretraining.run.rates import rate_lines
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_own_schedule_comes_with_it(name: str) -> None:
    assert load_config([f"optimizer={name}", "data.path=x"]).scheduler.name == OPTIMIZERS[name].schedule


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", ["constant", "warmup_linear", "inverse_sqrt"])
def test_a_schedule_that_is_named_rules(name: str, scheduler: str) -> None:
    for order in ([f"scheduler={scheduler}", f"optimizer={name}"], [f"optimizer={name}", f"scheduler={scheduler}"]):
        assert load_config([*order, "scheduler.warmup_steps=5", "data.path=x"]).scheduler.name == scheduler


def test_an_experiments_schedule_rules_over_the_optimizers_own() -> None:
    config = load_config(["experiment=quickstart_gpt", "optimizer=lamb", "data.path=x"])
    assert (config.scheduler.name, config.scheduler.warmup_steps) == ("warmup_cosine", 100)
    assert load_config(["experiment=quickstart_mae", "optimizer=lamb", "data.path=x"]).scheduler.name != "warmup_cosine"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optimizer=lamb"], "schedule: warmup_polynomial, which comes with lamb; rises over 100 of 1000 steps"),
        (["optimizer=adafactor"], "schedule: constant, which comes with adafactor; begins at its peak"),
        (["optimizer=lamb", "scheduler=constant"], "constant, chosen in place of warmup_polynomial, which comes with"),
        (["optimizer=lamb"], "at its peak, lamb's default (for about a thousand"),
        (
            ["optimizer=adamw", "optimizer.lr=1e-3"],
            "learning rate: 0.001 at its peak, as optimizer.lr says; a global batch has 64",
        ),
    ],
)
def test_a_run_says_which_rate_and_schedule_it_has_and_why(overrides: list[str], told: str) -> None:
    assert told in "\n".join(rate_lines(load_config([*overrides, "data.path=x"])))

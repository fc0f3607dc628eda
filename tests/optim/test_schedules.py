from __future__ import annotations

import math
from typing import Any

import pydantic
import pytest

from data_pipeline.common.registry import load
from pretraining.optim.schedules import SCHEDULES, ScheduleConfig

NAMES = list(SCHEDULES)


def make(name: str, **options: Any) -> ScheduleConfig:
    schedule: ScheduleConfig = load(SCHEDULES[name].config)(name=name, **options)
    return schedule


@pytest.mark.parametrize("name", NAMES)
def test_all_warm_up_in_equal_steps(name: Any) -> None:
    schedule = make(name, warmup_steps=4)
    assert [schedule.ratio(step, 20) for step in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # of 12 steps, 4 of them warm-up, at steps 6, 8, 10, 12: progress 1/4, 1/2, 3/4, 1
        ("warmup_cosine", {"min_ratio": 0.0}, [0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        (
            "warmup_cosine",
            {"min_ratio": 0.2},
            [0.2 + 0.8 * (0.5 + math.sqrt(0.125)), 0.6, 0.2 + 0.8 * (0.5 - math.sqrt(0.125)), 0.2],
        ),
        ("warmup_linear", {"min_ratio": 0.0}, [0.75, 0.5, 0.25, 0.0]),
        ("warmup_linear", {"min_ratio": 0.5}, [0.875, 0.75, 0.625, 0.5]),
        ("warmup_polynomial", {"power": 2.0}, [0.5625, 0.25, 0.0625, 0.0]),
        (
            "warmup_polynomial",
            {"power": 0.5, "min_ratio": 0.2},
            [0.2 + 0.8 * math.sqrt(0.75), 0.2 + 0.8 * math.sqrt(0.5), 0.6, 0.2],
        ),
        ("constant", {}, [1.0, 1.0, 1.0, 1.0]),
        ("inverse_sqrt", {}, [math.sqrt(4 / 6), math.sqrt(4 / 8), math.sqrt(4 / 10), math.sqrt(4 / 12)]),
        # the last third of 12 steps begins after step 8
        ("warmup_stable_decay", {"decay_fraction": 1 / 3, "min_ratio": 0.0}, [1.0, 1.0, 0.5, 0.0]),
        # a decay longer than what follows the warm-up begins with it
        ("warmup_stable_decay", {"decay_fraction": 0.9, "min_ratio": 0.5}, [0.875, 0.75, 0.625, 0.5]),
    ],
)
def test_shape_after_warm_up(name: Any, options: dict[str, float], expected: list[float]) -> None:
    schedule = make(name, warmup_steps=4, **options)
    assert [schedule.ratio(step, 12) for step in (6, 8, 10, 12)] == pytest.approx(expected)


def test_polynomial_of_power_one_is_linear() -> None:
    polynomial, linear = (make(n, warmup_steps=3, min_ratio=0.0) for n in ("warmup_polynomial", "warmup_linear"))
    assert [polynomial.ratio(s, 17) for s in range(1, 18)] == [linear.ratio(s, 17) for s in range(1, 18)]


@pytest.mark.parametrize("name", NAMES)
def test_no_warm_up_begins_near_the_peak_and_never_leaves_its_bounds(name: Any) -> None:
    schedule = make(name, warmup_steps=0)
    ratios = [schedule.ratio(step, 50) for step in range(1, 61)]
    assert ratios[0] > 0.95
    floor = 0.0 if name == "warmup_polynomial" else 0.1
    assert all(floor <= r <= 1.0 for r in ratios)


def test_a_warm_up_longer_than_training_only_rises() -> None:
    for name in ("constant", "warmup_cosine", "warmup_stable_decay", "inverse_sqrt"):
        schedule = make(name, warmup_steps=20)
        assert [schedule.ratio(step, 10) for step in (1, 10)] == [0.05, 0.5]


def test_constant_does_not_warm_up_by_itself() -> None:
    assert make("constant").ratio(1, 10) == 1.0


def test_each_schedule_has_only_the_keys_that_it_uses() -> None:
    for name, option in (("constant", "min_ratio"), ("inverse_sqrt", "min_ratio"), ("warmup_cosine", "power")):
        with pytest.raises(pydantic.ValidationError, match=option):
            make(name, **{option: 0.5})

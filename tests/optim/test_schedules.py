from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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


COSINE = math.sqrt(0.125)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # of 12 steps, 4 of them warm-up, at steps 5, 7, 9, 11: progress 0, 1/4, 1/2, 3/4
        ("warmup_cosine", {"min_ratio": 0.0}, [1.0, 0.5 + COSINE, 0.5, 0.5 - COSINE]),
        ("warmup_cosine", {"min_ratio": 0.2}, [1.0, 0.2 + 0.8 * (0.5 + COSINE), 0.6, 0.2 + 0.8 * (0.5 - COSINE)]),
        ("warmup_linear", {"min_ratio": 0.0}, [1.0, 0.75, 0.5, 0.25]),
        ("warmup_linear", {"min_ratio": 0.5}, [1.0, 0.875, 0.75, 0.625]),
        # counted from the first step: 4/12, 6/12, 8/12, 10/12
        ("warmup_polynomial", {"power": 2.0}, [4 / 9, 1 / 4, 1 / 9, 1 / 36]),
        (
            "warmup_polynomial",
            {"power": 0.5, "min_ratio": 0.2},
            [0.2 + 0.8 * math.sqrt(left / 12) for left in (8, 6, 4, 2)],
        ),
        ("constant", {}, [1.0, 1.0, 1.0, 1.0]),
        ("inverse_sqrt", {}, [math.sqrt(4 / n) for n in (5, 7, 9, 11)]),
        # the last third of 12 steps begins after step 8
        ("warmup_stable_decay", {"decay_fraction": 1 / 3, "min_ratio": 0.0}, [1.0, 1.0, 1.0, 0.5]),
        # a decay longer than what follows the warm-up begins with it
        ("warmup_stable_decay", {"decay_fraction": 0.9, "min_ratio": 0.5}, [1.0, 0.875, 0.75, 0.625]),
    ],
)
def test_shape_after_warm_up(name: Any, options: dict[str, float], expected: list[float]) -> None:
    schedule = make(name, warmup_steps=4, **options)
    assert [schedule.ratio(step, 12) for step in (5, 7, 9, 11)] == pytest.approx(expected)


class Case(NamedTuple):
    """An author's law: the rate of the update that their code numbers `step`, from 0, as a fraction of the peak."""

    law: Callable[[int, int, int], float]  # step, warm-up, steps
    name: str
    options: dict[str, Any]


def bert(step: int, warmup: int, steps: int) -> float:
    """google-research/bert and albert, optimization.py: a polynomial over all steps, overwritten by the warm-up."""
    return step / warmup if step < warmup else 1 - step / steps


def nvidia(step: int, warmup: int, steps: int) -> float:
    """NVIDIA/DeepLearningExamples, BERT, schedulers.py, PolyWarmUpScheduler: progress is the share of all steps."""
    return step / warmup if step < warmup else (1 - step / steps) ** 0.5


def nanogpt(step: int, warmup: int, steps: int) -> float:
    """karpathy/nanoGPT, train.py, get_lr: from 6e-4 to 6e-5."""
    share = (step - warmup) / (steps - warmup)
    return (6e-5 + 0.5 * (1 + math.cos(math.pi * share)) * (6e-4 - 6e-5)) / 6e-4


def mae(step: int, warmup: int, steps: int) -> float:
    """facebookresearch/mae, util/lr_sched.py, with min_lr 0; google-research/big_vision's cosine is the same."""
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def nanot5(step: int, warmup: int, steps: int) -> float:
    """PiotrNawrot/nanoT5, model_utils.py: torch's LinearLR from one half, then its cosine down to 1e-5 of 2e-2."""
    if step < warmup:
        return 0.5 + 0.5 * step / warmup
    return 5e-4 + (1 - 5e-4) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def vaswani(step: int, warmup: int, steps: int) -> float:
    """Section 5.3, whose steps begin at 1; relative to the peak, at the end of the warm-up."""
    return min((step + 1) ** -0.5, (step + 1) * warmup**-1.5) * warmup**0.5


LAWS = [
    Case(bert, "warmup_polynomial", {}),
    Case(nvidia, "warmup_polynomial", {"power": 0.5}),
    Case(nanogpt, "warmup_cosine", {}),
    Case(mae, "warmup_cosine", {"min_ratio": 0.0}),
    Case(nanot5, "warmup_cosine", {"min_ratio": 5e-4, "warmup_start": 0.5}),
    Case(vaswani, "inverse_sqrt", {}),
]


@pytest.mark.parametrize("case", LAWS, ids=lambda case: case.law.__name__)
@pytest.mark.parametrize(("warmup", "steps"), [(2813, 14063), (10, 1000), (3, 4)])
def test_behind_the_warm_up_it_is_the_authors_law(case: Case, warmup: int, steps: int) -> None:
    schedule = make(case.name, warmup_steps=warmup, **case.options)
    found = [schedule.ratio(number, steps) for number in range(warmup + 1, steps + 1)]
    assert found == pytest.approx([case.law(number - 1, warmup, steps) for number in range(warmup + 1, steps + 1)])


@pytest.mark.parametrize("case", LAWS, ids=lambda case: case.law.__name__)
def test_the_warm_up_is_the_authors_one_update_ahead(case: Case) -> None:
    """But for nanoGPT's (step + 1) / (warm-up + 1) and big_vision's own words for the same."""
    if case.law in (nanogpt, mae):
        return
    schedule = make(case.name, warmup_steps=50, **case.options)
    shift = 1 if case.law is vaswani else 0
    expected = [case.law(number - shift, 50, 400) for number in range(1, 50)]
    assert [schedule.ratio(number, 400) for number in range(1, 50)] == pytest.approx(expected)


def test_the_published_rate_of_bert_large_lamb() -> None:
    """At once behind the warm-up of a fifth it has four fifths of its peak, and in the last step a 14063rd."""
    schedule = make("warmup_polynomial", warmup_steps=2813)
    assert schedule.ratio(2814, 14063) == pytest.approx(1 - 2813 / 14063)
    assert schedule.ratio(14063, 14063) == pytest.approx(1 / 14063)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_no_update_is_lost_to_a_rate_of_zero(name: Any, steps: int) -> None:
    options = {} if name in ("constant", "inverse_sqrt") else {"min_ratio": 0.0}
    for warmup in ({"warmup_steps": 0}, {"warmup_steps": 3}, {}):
        schedule = make(name, **warmup, **options)
        assert all(0.0 < schedule.ratio(number, steps) <= 1.0 for number in range(1, steps + 1))


def test_the_warm_up_is_a_share_of_the_steps_unless_it_is_given() -> None:
    assert [make("warmup_cosine").warmup(steps) for steps in (1, 20, 1000, 600_000)] == [0, 2, 100, 60_000]
    assert make("warmup_cosine", warmup_fraction=0.25).warmup(1000) == 250
    assert make("warmup_cosine", warmup_steps=7).warmup(1000) == 7
    assert make("constant").warmup(1000) == 0


def test_the_rise_can_begin_above_zero() -> None:
    schedule = make("constant", warmup_steps=4, warmup_start=0.5)
    assert [schedule.ratio(number, 20) for number in range(1, 6)] == [0.625, 0.75, 0.875, 1.0, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_no_warm_up_begins_near_the_peak_and_never_leaves_its_bounds(name: Any) -> None:
    schedule = make(name, warmup_steps=0)
    ratios = [schedule.ratio(step, 50) for step in range(1, 61)]
    assert ratios[0] == 1.0
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

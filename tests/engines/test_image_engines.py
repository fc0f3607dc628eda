"""Image models on two ranks against one process, and resuming with drop path, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import metrics, run_world, train_alone, train_in_world
from tests.images import prepare_images, write_digits

COMMON = (
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "scheduler=constant",
    "scheduler.warmup_steps=2",
    "optimizer.eps=1e-6",
    "tracking.wandb=disabled",
    "data.num_workers=0",
    "train.steps=3",
)
FAMILIES = {
    "vit": (
        "model=vit_debug",
        "objective=image_classification",
        "objective.mixup=0.2",
        "objective.cutmix=1.0",
        "objective.rand_augment_ops=2",
    ),
    "mae": ("model=mae_debug", "objective=masked_image"),
}
SMALL = ("model.num_layers=2", "model.hidden_size=16", "model.num_heads=2")
LAYOUTS = {"ddp": (), **{f"zero{s}": ("engine=deepspeed", f"engine.zero_stage={s}") for s in (1, 2, 3)}}


def overrides(data: Path, run_dir: Path, family: str, *more: str) -> list[str]:
    return [*FAMILIES[family], *SMALL, *COMMON, f"data.path={data}", f"run_dir={run_dir}", *more]


def run_all(world: Any, data: Path, folder: Path) -> None:
    for family in FAMILIES:
        for layout, engine in LAYOUTS.items():
            train_in_world(world, *overrides(data, folder / f"{family}-{layout}", family, *engine))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert prepare_images(write_digits(folder / "in", count=200), folder / "out", "valid_fraction=0.1") == 0
    return folder / "out"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for family in FAMILIES:
        train_alone(*overrides(data, folder / f"{family}-one", family))
    run_world(2, run_all, data, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_process(runs: Path, family: str, layout: str) -> None:
    one, other = metrics(runs / f"{family}-one"), metrics(runs / f"{family}-{layout}")
    assert len(one) == len(other) == 3
    for step, line in one.items():
        assert line["batch_hash"] == other[step]["batch_hash"]
        assert abs(line["loss"] - other[step]["loss"]) < 1e-6
        assert abs(line["grad_norm"] - other[step]["grad_norm"]) < 1e-5


def test_a_resumed_run_draws_the_same_drop_path(data: Path, tmp_path: Path) -> None:
    random = ("model.drop_path=0.3", "model.dropout=0.1")
    train_alone(*overrides(data, tmp_path / "whole", "vit", *random))
    train_alone(*overrides(data, tmp_path / "half", "vit", *random, "train.steps=2"))
    train_alone(*overrides(data, tmp_path / "half", "vit", *random))
    whole, resumed = metrics(tmp_path / "whole"), metrics(tmp_path / "half")
    assert [(line["loss"], line["grad_norm"]) for line in resumed.values()] == [
        (line["loss"], line["grad_norm"]) for line in whole.values()
    ]

"""Norms by layer in a run's lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretraining.run.layer_norms import by_layer, layer_of
from pretraining.run.metrics import read_metrics
from tests.helpers import TINY, run_world, train_alone, train_in_world


def test_tensors_are_put_together_by_layer() -> None:
    names = ["blocks.0.a.weight", "blocks.0.a.bias", "blocks.10.a.weight", "token_embedding.weight"]
    rows = [[3.0, 3.0, 6.0, 2.0], [4.0, 4.0, 8.0, 1.0], [1.0, 2.0, 0.0, 3.0], [5.0, 1.0, 2.0, 4.0]]
    found = by_layer(names, [True, False, True, True], rows, ["trust_ratio"])
    assert found == {
        "grad_norm": {"blocks.0": 5.0, "blocks.10": 1.0, "token_embedding": 5.0},
        "update": {"blocks.0": 0.5, "token_embedding": 0.5},
        "trust_ratio": {"blocks.0": 2.0, "blocks.10": 3.0, "token_embedding": 4.0},
    }
    assert [layer_of(n) for n in ("encoder.blocks.3.x.y", "head")] == ["encoder.blocks.3", "head"]


def overrides(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    keys = ("optimizer=lamb", "train.steps=4", "tracking.layers_every=2", "train.grad_clip=0")
    return [*TINY, *keys, f"data.path={corpus}", f"run_dir={run_dir}", *more]


def layers(run_dir: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if any(key.startswith("layers/") for key in line)]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def two_ranks(world: Any, corpus: Path, folder: Path) -> None:
    for name, more in (
        ("ddp", ("engine.shard_optimizer=true",)),
        ("zero3", ("engine=deepspeed", "engine.zero_stage=3")),
    ):
        train_in_world(world, *overrides(corpus, folder / name, *more))


def test_every_nth_step_has_them_the_same_under_every_layout(corpus: Path, tmp_path: Path) -> None:
    train_alone(*overrides(corpus, tmp_path / "alone"))
    alone = layers(tmp_path / "alone")
    assert [line["step"] for line in alone] == [2, 4]
    kinds = {key.split("/")[1] for line in alone for key in line if key != "step"}
    assert kinds == {"grad_norm", "update", "trust_ratio"} and "layers/update/blocks.1" in alone[0]
    training = {line["step"]: line for line in read_metrics(tmp_path / "alone/metrics.jsonl") if "loss" in line}
    norms = [value for key, value in alone[0].items() if key.startswith("layers/grad_norm/")]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(training[2]["grad_norm"], rel=1e-5)
    run_world(2, two_ranks, corpus, tmp_path)
    for name in ("ddp", "zero3"):
        for line, expected in zip(layers(tmp_path / name), alone, strict=True):
            assert line == pytest.approx(expected, rel=1e-3)

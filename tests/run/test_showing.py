"""What evaluations leave of samples in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, finished_weights, run_world, train_alone, train_in_world

EVALUATED = ("train.steps=4", "train.eval_every=2", "train.eval_batches=1")


def overrides(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [*TINY, *EVALUATED, f"data.path={corpus}", f"run_dir={run_dir}", *more]


def shown(run_dir: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in sorted(run_dir.glob("samples/*/samples.txt"))}


def test_each_evaluation_shows_what_the_model_does_and_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    train_alone(*overrides(corpus, tmp_path / "a"))
    train_alone(*overrides(corpus, tmp_path / "b", "tracking.samples=0"))
    found = shown(tmp_path / "a")
    assert list(found) == ["step_00000000", "step_00000002", "step_00000004"] and all(found.values())
    assert not (tmp_path / "b" / "samples").exists()
    with_samples, without = finished_weights(tmp_path / "a"), finished_weights(tmp_path / "b")
    assert all(torch.equal(with_samples[name], without[name]) for name in without)


def test_masks_and_spans_are_shown(corpus: Path, tmp_path: Path) -> None:
    layers = ("model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=32")
    bert = ("model=bert_debug", "objective=masked_lm", *layers)
    train_alone(*overrides(corpus, tmp_path / "bert", *bert))
    t5 = ("model=t5_debug", "objective=span_corruption", "model.hidden_size=32", "model.num_heads=2")
    train_alone(*overrides(corpus, tmp_path / "t5", *t5))
    assert "masked tokens in 4 samples" in shown(tmp_path / "bert")["step_00000004"]
    assert "tokens in the spans of 4 samples" in shown(tmp_path / "t5")["step_00000004"]


def two_ranks(world: Any, corpus: Path, folder: Path) -> None:
    for name, more in (
        ("ddp", ()),
        ("zero2", ("engine=deepspeed", "engine.zero_stage=2")),
        ("zero3", ("engine=deepspeed", "engine.zero_stage=3")),
    ):
        train_in_world(world, *overrides(corpus, folder / name, *more))


def test_sharded_weights_are_shown_where_a_rank_holds_all_of_them(corpus: Path, tmp_path: Path) -> None:
    train_alone(*overrides(corpus, tmp_path / "alone"))
    run_world(2, two_ranks, corpus, tmp_path)
    alone = shown(tmp_path / "alone")
    assert shown(tmp_path / "ddp")["step_00000000"] == alone["step_00000000"] and len(shown(tmp_path / "ddp")) == 3
    assert shown(tmp_path / "zero2") == shown(tmp_path / "ddp") and shown(tmp_path / "zero3") == {}


def test_images_are_shown_as_one_picture(digits: Path, tmp_path: Path) -> None:
    keys = ("model=vit_debug", "objective=image_classification", *TINY[5:])
    train_alone(*keys, *EVALUATED, f"data.path={digits}", f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run/samples/step_00000004/predictions.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_is_told_and_training_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("no folder")
    monkeypatch.setattr("pretraining.run.terminal._told", set())
    train_alone(*overrides(corpus, tmp_path / "run"))
    assert "samples cannot be written to" in capsys.readouterr().err


def test_nothing_is_shown_through_a_link(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "samples").symlink_to(tmp_path / "outside")
    train_alone(*overrides(corpus, tmp_path / "run"))
    assert not list((tmp_path / "outside").glob("*/*"))

"""Traces of single steps: of the ranks and steps that were asked for, and nothing else changes."""

from __future__ import annotations

import gzip
import json

import pytest

from data_pipeline.common.errors import InputError
from pretraining.config import load_config
from tests.helpers import TINY, metrics, run_world, train_alone, train_in_world


def test_the_steps_that_were_asked_for_have_a_trace(corpus, tmp_path, capsys):
    arguments = (*TINY, f"data.path={corpus}", "train.steps=4")
    train_alone(*arguments, f"run_dir={tmp_path}/plain")
    train_alone(*arguments, f"run_dir={tmp_path}/run", "train.profile=[2,4]")
    names = sorted(path.name for path in (tmp_path / "run" / "profile").iterdir())
    expected = [f"step_0000000{step}.rank_00000.{kind}" for step in (2, 4) for kind in ("json.gz", "txt")]
    assert names == expected and not (tmp_path / "plain" / "profile").exists()
    with gzip.open(tmp_path / "run" / "profile" / names[0]) as file:
        events = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::embedding" in events and any("Backward" in str(name) for name in events)
    assert "Self CPU" in (tmp_path / "run" / "profile" / names[1]).read_text()
    losses = [[line["loss"] for line in metrics(tmp_path / name).values()] for name in ("plain", "run")]
    assert losses[0] == losses[1]


def _train(world, corpus, folder):
    train_in_world(
        world,
        *TINY,
        f"data.path={corpus}",
        f"run_dir={folder}",
        "train.steps=2",
        "train.profile=[2]",
        "train.profile_ranks=[1]",
    )


def test_the_ranks_that_were_asked_for_write_one(corpus, tmp_path):
    run_world(2, _train, corpus, tmp_path / "run")
    assert {path.name.split(".")[1] for path in (tmp_path / "run" / "profile").iterdir()} == {"rank_00001"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.profile=[2000]", "the run has 1000 steps"),
        ("train.profile_ranks=[1]", "the last rank is 0"),
        ("train.profile=[0]", "train.profile"),
    ],
)
def test_steps_and_ranks_that_are_not_there_are_refused(override, said):
    with pytest.raises(InputError, match=said):
        load_config(["data.path=x", "train.profile=[1]", override])

"""Whatever layout wrote a checkpoint, every other resumes from it as if nothing had happened."""

import itertools
from pathlib import Path

import pytest

from pretraining.checkpoint import checkpoint_folder
from tests.distributed.parity import COMMON, LAYOUTS, OPTIMIZERS
from tests.helpers import metrics, run_world, train_alone, train_in_world

SAVED, STEPS = 5, 10
NAMES = ("one", "ZeRO-2 x2", "TP2", "TP2 x ZeRO-3")


def overrides(corpus, run_dir, layout, *more):
    engine = [] if layout == "one" else LAYOUTS[layout][1]
    return ["model=gpt_debug", *COMMON, *OPTIMIZERS["lamb"], *engine, "model.max_seq_len=32", f"train.steps={STEPS}",
            f"train.checkpoint_every={SAVED}", "train.freeze=['blocks.0.mlp_norm.*']", f"data.path={corpus}",
            f"run_dir={run_dir}", *more]


def run_in_layout(layout, all_overrides):
    if layout == "one":
        for each in all_overrides:
            train_alone(*each)
    else:
        ranks, engine = LAYOUTS[layout]
        run_world(ranks, run_each, all_overrides, tensor_parallel=2 if "engine.tensor_parallel=2" in engine else 1)


def run_each(world, all_overrides):
    for each in all_overrides:
        train_in_world(world, *each)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for layout in NAMES:
        run_in_layout(layout, [overrides(corpus, folder / layout, layout)])
    for layout in NAMES:
        resumed = [overrides(corpus, folder / f"{source} to {layout}", layout,
                             f"train.resume='{checkpoint_folder(folder / source, SAVED)}'") for source in NAMES]
        run_in_layout(layout, resumed)
    return folder


@pytest.mark.parametrize("source, layout", itertools.product(NAMES, NAMES))
def test_resumes(runs, source, layout):
    whole, resumed = metrics(runs / source), metrics(runs / f"{source} to {layout}")
    assert sorted(resumed) == list(range(SAVED + 1, STEPS + 1))
    for step, line in resumed.items():
        assert line["batch_hash"] == whole[step]["batch_hash"]
        bound = 0.0 if source == layout else 1e-5
        assert abs(line["loss"] - whole[step]["loss"]) <= bound

"""Whatever layout wrote a checkpoint, every other resumes from it as if nothing had happened."""

import itertools
import shutil

import pytest

from pretraining.run.checkpoint_format import checkpoint_folder
from tests.distributed.any_checkpoint import BOUND, SAVED, difference, holds, resume, run_all
from tests.distributed.parity import prepare_data
from tests.helpers import metrics
from tests.run.old_checkpoints import as_format_1

LAYOUTS = ("one", "ZeRO-2 x2", "TP2 + SP", "TP2 x ZeRO-3")  # `make any-checkpoint` has all of them


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run_all(LAYOUTS, data, folder, "lamb", "gpt")
    return folder


@pytest.mark.parametrize("source, layout", itertools.product(LAYOUTS, LAYOUTS))
def test_resumes(folder, source, layout):
    assert holds(folder, source, layout), difference(folder, source, layout)


def test_resumes_from_format_1(data, folder, tmp_path):
    """Checkpoints of before there were parts go on in any layout, and on their own bit for bit."""
    source = "TP2 x ZeRO-3"
    saved = shutil.copytree(checkpoint_folder(folder / source, SAVED), checkpoint_folder(tmp_path / "old", SAVED))
    as_format_1(saved)
    found = dict(zip(LAYOUTS, resume(LAYOUTS, saved, data, tmp_path), strict=True))
    for layout, resumed in found.items():
        assert sorted(resumed) == list(range(SAVED + 1, 21))
        same = metrics(folder / f"{source} to {layout}")
        assert [resumed[step]["loss"] for step in resumed] == [same[step]["loss"] for step in resumed]


def test_resumes_in_another_precision(data, folder, tmp_path):
    """fp32 -> bf16 -> fp32 across layouts: weights and state are fp32 in every file, so that two layouts that leave
    bf16 at the same checkpoint agree as fp32 runs do."""
    saved = checkpoint_folder(folder / "one", SAVED)
    (in_bf16,) = resume(["ZeRO-2 x2"], saved, data, tmp_path, "train.precision=bf16", "train.checkpoint_every=5")
    (in_fp32,) = resume(["one"], saved, data, tmp_path / "fp32")
    assert all(0 < abs(in_bf16[step]["loss"] - in_fp32[step]["loss"]) < 3e-2 for step in in_fp32)
    middle = checkpoint_folder(tmp_path / "ZeRO-2 x2", 15)
    one, split = resume(["one", "TP2 + SP"], middle, data, tmp_path / "back")
    assert sorted(one) == list(range(16, 21))
    assert all(abs(one[step]["loss"] - split[step]["loss"]) <= BOUND for step in one)

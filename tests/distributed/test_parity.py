"""A part of the parity matrix that covers every engine and every optimizer; `make parity` runs all of it."""

from pathlib import Path

import pytest

from pretraining.parallel.layout import Layout
from tests.distributed.comparison import LOSS_BOUND, WEIGHT_BOUND, difference
from tests.distributed.parity import compare, overrides, prepare_data
from tests.helpers import run_world, train_alone, train_in_world

CASES = [
    ("adafactor", "vit", "DDP x2"),
    ("lamb", "gpt", "ZeRO-3 x2"),
    ("adafactor", "t5", "ZeRO-2 x2"),
    ("adamw", "bert", "TP2 + SP"),
    ("adafactor", "t5", "TP2 + SP"),
    ("lamb", "gpt", "TP2 x DP2"),
    ("adafactor", "t5", "TP2 x ZeRO-3"),
    ("adamw", "llama", "TP2 + SP"),
    ("adamw", "mae", "TP2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    return compare(CASES, data, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("case", CASES, ids=" / ".join)
def test_equals_one_process(results, case):
    assert results[case].holds, results[case]


def run_with_local_statistics(world, data, folder, cases):
    """What a sharded optimizer does that knows nothing of the other ranks' parts."""
    Layout.sum_over_parts = lambda self, statistics, lengths=None: statistics
    for case in cases:
        train_in_world(world, *overrides(data, folder, case))


@pytest.mark.parametrize("optimizer", ["lamb", "adafactor"])
def test_local_statistics_fail(data, tmp_path, optimizer):
    """The check has teeth: norms and row and column statistics of the local part alone are far off."""
    case = (optimizer, "gpt", "ZeRO-2 x2")
    train_alone(*overrides(data, tmp_path, (optimizer, "gpt", "one")))
    run_world(2, run_with_local_statistics, data, tmp_path, [case])
    found = difference(overrides, data, tmp_path, case)
    assert found.loss > 10 * LOSS_BOUND and found.weight > 10 * WEIGHT_BOUND

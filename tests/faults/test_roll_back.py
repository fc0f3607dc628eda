"""Two of the layouts of `make soak`: one whose weights follow from a flat partition, one whose optimizer is dealt."""

from __future__ import annotations

import pytest

from tests.faults.roll_backs import roll_back_and_kill


@pytest.mark.parametrize("layout", ["zero3", "shard_optimizer"])
def test_a_roll_back_and_a_kill_after_it(corpus, tmp_path, layout):
    roll_back_and_kill(corpus, tmp_path, layout)

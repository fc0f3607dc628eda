"""`make soak`, three times instead of 30."""

from __future__ import annotations

from tests.faults.soak import soak


def test_a_run_that_is_disturbed_is_the_one_that_was_not(corpus, tmp_path):
    assert len(soak(corpus, tmp_path, times=3, seed=3)) == 3

"""`make resume` tries every layout; these are the engines'."""

import pytest

from tests.distributed.resume import FEW, differences, run


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    run(corpus, folder, list(FEW))
    return folder


@pytest.mark.parametrize("layout", FEW)
def test_four_ranks_resume_bit_for_bit(runs, layout):
    assert differences(runs, layout) == []

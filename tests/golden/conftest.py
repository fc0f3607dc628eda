"""One prepared text and one prepared folder of images for all golden tests."""

from __future__ import annotations

import pytest

from tests.golden.runs import Data


@pytest.fixture(scope="session")
def golden_data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data.make(tmp_path_factory.mktemp("golden"))

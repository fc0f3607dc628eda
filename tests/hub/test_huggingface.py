"""Runs of the adapter, one of text and one of images; `make parity` takes every architecture of the table."""

from pathlib import Path

import pytest

from tests.distributed.adapter import prepare_data
from tests.hub.round_trip import resume_differences, run_and_export, start_difference


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("architecture", ["BartForConditionalGeneration", "ResNetForImageClassification"])
def test_a_run_is_resumed_exported_and_read_back(data, tmp_path, architecture):
    chosen = run_and_export(data, tmp_path, architecture)
    assert resume_differences(tmp_path, chosen) == []
    assert start_difference(tmp_path, chosen) < 1e-5

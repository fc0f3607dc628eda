"""Values pinned in tests/golden/*.json: what changes batches, files or losses on all layouts alike fails here."""

from __future__ import annotations

import pytest

from tests.golden import batches, files, losses, samples, schedules
from tests.golden.runs import Case, Data
from tests.golden.values import check, check_cases


@pytest.mark.parametrize("case", files.CASES)
def test_prepared_files(case: str, golden_data: Data) -> None:
    check(files.KIND, case, files.compute(case, golden_data))


@pytest.mark.parametrize("case", batches.CASES, ids=lambda case: case.name)
def test_batch_hashes(case: Case, golden_data: Data) -> None:
    check(batches.KIND, case.name, batches.compute(case, golden_data))


@pytest.mark.parametrize("case", samples.CASES)
def test_samples(case: str, golden_data: Data) -> None:
    check(samples.KIND, case, samples.compute(case, golden_data))


@pytest.mark.parametrize("case", losses.CASES, ids=lambda case: case.name)
def test_losses(case: Case, golden_data: Data) -> None:
    check(losses.KIND, case.name, losses.compute(case, golden_data), losses.RELATIVE)


@pytest.mark.parametrize("case", schedules.CASES)
def test_schedules(case: str) -> None:
    check(schedules.KIND, case, schedules.compute(case), schedules.RELATIVE)


def test_every_pinned_value_is_tested() -> None:
    check_cases(files.KIND, files.CASES)
    check_cases(batches.KIND, [case.name for case in batches.CASES])
    check_cases(losses.KIND, [case.name for case in losses.CASES])
    check_cases(samples.KIND, list(samples.CASES))
    check_cases(schedules.KIND, schedules.CASES)

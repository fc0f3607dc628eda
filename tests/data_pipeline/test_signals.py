"""pretrain-data ends whenever it is told to; `make any-signal` tries more moments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from data_pipeline.common.supervise import supervised
from tests.data_pipeline.any_signal import start, stop, try_moments


def test_stopped_at_random_moments_it_ends_and_continues(tmp_path: Path) -> None:
    try_moments(tmp_path, moments=4, documents=600)


@pytest.mark.parametrize("twice", [False, True])
def test_stopped_within_a_line_of_200_megabytes(tmp_path: Path, twice: bool) -> None:
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        file.write('{"text": "')
        for _ in range(200):
            file.write("ten bytes " * 100_000)
        file.write('"}\n')
    process = start(source, tmp_path / "out", workers=2)
    time.sleep(1.0)  # it has begun, and needs some seconds more
    assert stop(process, signal.SIGTERM, twice, whole_group=False)[0] in (75, -signal.SIGTERM)


def in_a_process(function: object) -> int:
    """The exit code of supervised(function), in a process of its own: it changes the signals of its process."""
    child = os.fork()
    if child == 0:
        os._exit(supervised(function, "try again"))  # type: ignore[arg-type]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_exit_codes_are_handed_on() -> None:
    assert in_a_process(lambda: 0) == 0
    assert in_a_process(lambda: 2) == 2
    assert in_a_process(lambda: os.kill(os.getpid(), signal.SIGKILL)) == 75


def test_a_signal_of_the_parent_ends_a_child_that_hangs(tmp_path: Path) -> None:
    def hang() -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        while True:
            time.sleep(1)

    assert in_a_process(hang) == 75

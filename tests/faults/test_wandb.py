"""W&B that is silent or lost midway holds training up for less than 30 s in all; what it lacks can be uploaded."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from pretraining.config import TrackingConfig
from pretraining.run.weights_and_biases import WandbRun
from tests.faults.test_replay import line
from tests.helpers import ROOT, run_process

MOST_SECONDS = 30


@pytest.fixture(autouse=True)
def fresh_wandb() -> Iterator[None]:
    """W&B reads its environment once in a process, so that another test's would count here."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.faults.wandb_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    use(monkeypatch, int(process.stdout.readline()))
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as listener:  # it takes connections and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        use(monkeypatch, listener.getsockname()[1])
        yield


def use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def steps_of(folder: Path) -> int:
    """How many lines of history the local copy has."""
    shown = run_process(
        os.path.join(os.path.dirname(sys.executable), "wandb"), "leet", "inspect", "--json", str(folder)
    )
    return len(re.findall(r'"train/lr"', shown.stdout)) or len(re.findall("train/lr", shown.stdout))


def test_a_server_lost_midway(tmp_path, server, capsys):
    run = WandbRun(TrackingConfig(wandb="online"), tmp_path, {})
    assert run.run.settings.mode == "online"
    for _ in range(5):
        run.log(line())
    server.kill()
    for _ in range(5):
        run.log(line())
    began = time.monotonic()
    run.finish(exit_code=0)
    assert time.monotonic() - began < MOST_SECONDS
    (folder,) = (tmp_path / "wandb").glob("run-*")
    said = capsys.readouterr().out
    assert f"W&B did not take all of the run; upload it by: wandb sync {os.path.relpath(folder)}" in said
    assert steps_of(folder) >= 10


def test_a_server_that_is_silent(tmp_path, silent, capsys):
    began = time.monotonic()
    run = WandbRun(TrackingConfig(wandb="online"), tmp_path, {})
    assert run.run.settings.mode == "offline"
    for _ in range(10):
        run.log(line())
    run.finish(exit_code=0)
    assert time.monotonic() - began < MOST_SECONDS
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    captured = capsys.readouterr()
    assert "W&B cannot be used" in captured.err
    assert f"upload to W&B: wandb sync {os.path.relpath(folder)}" in captured.out
    assert steps_of(folder) >= 10


@pytest.mark.parametrize("lines_after", [0, 3])
def test_a_sigterm_to_every_process_of_a_job_loses_no_line(tmp_path, lines_after):
    """As Slurm sends it at a pre-emption: W&B's process ends at once, with what it has not written."""
    known = set(children())
    run = WandbRun(TrackingConfig(wandb="offline"), tmp_path, {})
    for _ in range(5):
        run.log(line())
    ended = [child for child in children() if child not in known]
    assert ended
    for child in ended:
        os.kill(child, signal.SIGTERM)
    time.sleep(0.5)
    for _ in range(lines_after):
        run.log(line())
    run.finish(exit_code=75)
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    # Parts of one run; within a second W&B numbers them: offline-run-TIME-ID, offline-run-TIME-ID-1
    assert len({folder.name.split("-")[3] for folder in folders}) == 1
    assert max(steps_of(folder) for folder in folders) >= 5 + lines_after


def children() -> list[int]:
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

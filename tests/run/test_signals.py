"""A process ends in bounded time once it is asked to, whatever its main thread waits for: real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pretraining.run.ownership import _process_start
from pretraining.run.signals import SIGNALS, StopRequest
from tests.helpers import ROOT

# The main thread is in C and never runs Python's handlers, as in a collective
DEAF = """
import hashlib, sys
from pathlib import Path
from pretraining.run.ownership import _process_start
from pretraining.run.signals import StopRequest
from pretraining.run.verdict import Verdict
stop = StopRequest().install()
stop.on_end = Verdict(0, Path(sys.argv[1])).write
stop.trained, stop.answered, stop.grace_seconds = "trained" in sys.argv, "answered" in sys.argv, 1.0
print("ready", flush=True)
if "asked" in sys.argv:
    stop.ask("another job has taken over")
hashlib.pbkdf2_hmac("sha256", b"", b"", 30_000_000 if "answered" in sys.argv else 2_000_000_000)
print("done", flush=True)
"""


def start(program, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def ended(process, within):
    """-> (exit code, what it said)."""
    said, _ = process.communicate(timeout=within)
    return process.returncode, said


def verdict(run_dir):
    return json.loads((run_dir / "verdict.json").read_text())


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_ends_what_has_nothing_to_save(tmp_path, signum):
    process = start(DEAF, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    code, said = ended(process, within=5)
    reason = f"stopped by {signum.name} before a step was trained: there was nothing to save"
    assert (code, said.strip(), verdict(tmp_path)) == (75, reason, {"exit_code": 75, "reason": reason})


def test_a_main_thread_that_hangs_is_ended_after_its_grace(tmp_path):
    process = start(DEAF, tmp_path, "trained")
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _ = ended(process, within=10)
    assert code == 75 and 1.0 <= time.monotonic() - began < 5.0
    assert "stopped by SIGTERM, but the main thread gave no answer within 1 s" in verdict(tmp_path)["reason"]


def test_a_stop_that_another_thread_asks_for_has_the_same_grace(tmp_path):
    process = start(DEAF, tmp_path, "trained", "asked")
    assert process.stdout.readline() == "ready\n"
    assert ended(process, within=10)[0] == 75 and "another job has taken over" in verdict(tmp_path)["reason"]


def test_one_that_has_answered_is_left_to_save(tmp_path):
    process = start(DEAF, tmp_path, "trained", "answered")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process, within=60) == (0, "done\n")


def test_a_second_ctrl_c_ends_a_main_thread_that_hangs(tmp_path):
    process = start(DEAF, tmp_path, "trained")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert ended(process, within=5)[0] == 130


IMPORTING = """
import sys, time
from importlib.abc import MetaPathFinder
class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pydantic":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from pretraining.train import console
console()
"""


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_while_modules_are_imported_has_its_word_and_its_verdict(tmp_path, signum):
    process = start(IMPORTING, f"run_dir={tmp_path / 'run'}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signum)
    code, said = ended(process, within=10)
    assert code == 75 and f"stopped by {signum.name}" in said and verdict(tmp_path / "run")["exit_code"] == 75


LAUNCHER = """
import os, subprocess, sys, time
process = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print(process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "CROSS_RANK", "NOTHING"])
def test_a_rank_ends_with_its_launcher_and_not_with_the_shell_that_started_it(tmp_path, launcher):
    parent = start(LAUNCHER, DEAF, tmp_path, **{launcher: "1"})
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    time.sleep(3)
    alive = _process_start(pid) != ""
    assert alive == (launcher == "NOTHING")
    if alive:
        os.kill(pid, signal.SIGKILL)
    else:
        assert verdict(tmp_path)["reason"].startswith("the launcher died")


def test_one_ctrl_c_is_one_whichever_thread_sees_it_first():
    stop = StopRequest()
    stop.trained = True
    stop._arrived(signal.SIGINT)
    stop._handle(signal.SIGINT, None)
    assert stop.reason == "stopped by SIGINT"
    with pytest.raises(KeyboardInterrupt):
        stop._handle(signal.SIGINT, None)


def test_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    stop = StopRequest().install()
    assert signal.getsignal(signal.SIGUSR2) == stop._handle
    stop.remove()
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    stop.remove()


def test_a_forked_worker_does_not_stop_its_parent():
    stop = StopRequest().install()
    stop.trained = True
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.3)
        assert stop.reason is None and stop._asked is None
    finally:
        stop.remove()

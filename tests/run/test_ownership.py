"""A run_dir has one owner: real processes, which beat faster here than runs do."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.common.errors import InputError
from pretraining.run import ownership
from pretraining.run.ownership import Owner, Ownership, live_owner
from tests.helpers import ROOT

OWN = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from pretraining.run import ownership
ownership.BEAT_SECONDS, ownership.STALE_SECONDS = 0.1, 0.6
if "elsewhere" in sys.argv:  # where pids of this machine mean nothing
    ownership._machine = lambda: "another boot"
if len(sys.argv) > 3:
    sys.stdin.readline()  # all start at once
try:
    owner = ownership.Ownership(Path(sys.argv[1]), print, lambda text: print("lost", text, flush=True))
except ownership.InputError as error:
    print("refused:", error, flush=True)
    sys.exit(2)
print("owns", flush=True)
time.sleep(60)
"""


def own(run_dir, *more, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", OWN, str(run_dir), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def said(process, word):
    line = process.stdout.readline()
    assert word in line, line
    return line


def kill(*processes):
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_second_job_is_refused_by_name(tmp_path, where):
    """On the machine of the first its process is looked up; from another one a heartbeat is waited for."""
    first = own(tmp_path, SLURM_JOB_ID="4711")
    said(first, "owns")
    second = own(tmp_path, where)
    refusal = said(second, "refused")
    assert second.wait() == 2
    assert f"host {Owner.this_job().host}, pid {first.pid}, job 4711, since 2" in refusal
    assert "heartbeat 0 s ago" in refusal and "choose another run_dir" in refusal
    kill(first)


def test_a_killed_owner_is_taken_over_without_waiting(tmp_path):
    first = own(tmp_path)
    said(first, "owns")
    kill(first)
    began, told = time.monotonic(), []
    owner = Ownership(tmp_path, told.append, pytest.fail)
    assert time.monotonic() - began < 1.0
    assert len(told) == 1 and f"pid {first.pid}" in told[0] and "its process is gone" in told[0]
    assert owner.taken_over() is None and [f.name for f in tmp_path.iterdir()] == ["owner.2.json"]
    owner.release()
    assert not list(tmp_path.iterdir())


def test_one_that_was_killed_elsewhere_is_taken_over_once_its_heartbeat_is_old(tmp_path):
    first = own(tmp_path, "elsewhere")
    said(first, "owns")
    os.kill(first.pid, signal.SIGSTOP)  # a host that is gone tells nobody
    began = time.monotonic()
    second = own(tmp_path, "here")
    assert "last heartbeat" in said(second, "is taken over")
    said(second, "owns")
    assert time.monotonic() - began > 0.5
    os.kill(first.pid, signal.SIGCONT)
    assert f"pid {second.pid}" in said(first, "lost")
    kill(first, second)


def test_a_requeued_job_does_not_wait_for_itself(tmp_path):
    first = own(tmp_path, "elsewhere", SLURM_JOB_ID="4711")
    said(first, "owns")
    second = own(tmp_path, SLURM_JOB_ID="4711", SLURM_RESTART_COUNT="1")
    assert "the job was requeued" in said(second, "is taken over")
    other_step = own(tmp_path, SLURM_JOB_ID="4711", SLURM_RESTART_COUNT="1")
    said(other_step, "refused")
    kill(first, second, other_step)


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path):
    job = Owner.this_job()
    owner = json.dumps({**vars(job), "process_start": "1"})
    (tmp_path / "owner.1.json").write_text(owner)
    assert live_owner(tmp_path) is None
    (tmp_path / "owner.1.json").write_text(json.dumps(vars(job)))
    assert live_owner(tmp_path) == job


@pytest.mark.parametrize("before", ["nothing", "a dead owner"])
@pytest.mark.parametrize("attempt", range(2))
def test_of_several_that_start_at_once_one_wins(tmp_path, before, attempt):
    if before == "a dead owner":
        dead = own(tmp_path, "elsewhere")
        said(dead, "owns")
        kill(dead)
        os.utime(tmp_path / "owner.1.json", (1, 1))
    jobs = [own(tmp_path, "here" if n % 2 else "elsewhere", "wait") for n in range(6)]
    time.sleep(1.5)
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()
    ends = [job.stdout.readline() for job in jobs]
    ends = [job.stdout.readline() if "taken over" in end else end for job, end in zip(jobs, ends, strict=True)]
    assert sorted(end.split(":")[0].strip() for end in ends) == ["owns"] + ["refused"] * 5, ends
    kill(*jobs)


def test_what_is_judged_by_an_old_list_of_files_is_judged_again(tmp_path, monkeypatch):
    """As a network file system may show: nothing, though another job has taken over already."""
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    first = own(tmp_path)
    said(first, "owns")
    (tmp_path / "owner.1.json").rename(tmp_path / "owner.7.json")
    listed, lists = os.listdir, [[]]
    monkeypatch.setattr(os, "listdir", lambda path: lists.pop() if lists else listed(path))
    with pytest.raises(InputError, match=f"pid {first.pid}"):
        Ownership(tmp_path, pytest.fail, pytest.fail)
    assert not lists and [f.name for f in tmp_path.iterdir()] == ["owner.7.json"]
    kill(first)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 100_000, b"[" * 50_000])
def test_an_owner_file_of_somebody_else_counts_while_it_is_young(tmp_path, monkeypatch, content):
    monkeypatch.setattr(ownership, "STALE_SECONDS", 0.5)
    (tmp_path / "owner.1.json").write_bytes(content)
    began, told = time.monotonic(), []
    Ownership(tmp_path, told.append, pytest.fail).release()
    assert time.monotonic() - began > 0.4 and len(told) == 1


def test_an_owner_file_that_is_a_link_or_a_pipe_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "owner.1.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"owner\.1\.json"):
        Ownership(tmp_path / "run", pytest.fail, pytest.fail)
    assert (tmp_path / "elsewhere").read_text() == "kept"

"""A rank that dies, hangs or is slow, as real processes: who is named, how soon all end, and with which code."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from data_pipeline.common.json_files import read_json
from tests.faults.runs import Job, losses

QUICK = ("train.watchdog_seconds=2", "train.timeout_seconds=8")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    job = Job(corpus, tmp_path_factory.mktemp("undisturbed") / "run")
    assert job.ends() == [0, 0], job.output()
    return job


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_run_goes_on(corpus, tmp_path, undisturbed, rank):
    job = Job(corpus, tmp_path / "run", fault=f"kill_itself:{rank}:8")
    codes = job.ends()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 75, job.output()
    assert job.seconds_after_first_end() < 60
    verdict = read_json(job.run_dir / "verdict.json")
    told = rf"rank {rank} \(\S+, pid {job.ranks[rank].pid}\) died without a word in step 8: killed, or out of memory"
    assert verdict["exit_code"] == 75 and re.match(told, verdict["reason"]), verdict
    assert verdict["fault"] is True  # no signal asked for it
    again = Job(corpus, job.run_dir)
    assert again.ends() == [0, 0], again.output()
    assert losses(job.run_dir) == losses(undisturbed.run_dir)


def test_a_fault_that_comes_again_is_said_not_to_be_mended_by_a_restart(corpus, tmp_path):
    for code in (75, 1):
        job = Job(corpus, tmp_path / "run", fault="kill_itself:1:3")
        assert job.ends() == [code, -signal.SIGKILL], job.output()
        assert read_json(job.run_dir / "verdict.json")["exit_code"] == code
    reason = read_json(job.run_dir / "verdict.json")["reason"]
    assert "ended at step 3 by the same fault" in reason and "a restart will not mend it" in reason
    assert re.search(r"Its batch: samples 16 to 23: train/shard-\d+.tar \(block/document \d+/\d+", reason), reason


def test_all_ranks_end_alike_where_a_hang_comes_again(corpus, tmp_path):
    """A launcher takes any rank's code, and must not requeue by one of them."""
    for code in (75, 1):
        job = Job(corpus, tmp_path / "run", *QUICK, fault="hang_data:1:5")
        assert job.ends() == [code, code], job.output()
        assert read_json(job.run_dir / "verdict.json")["exit_code"] == code
        assert job.seconds_after_first_end() < 10


@pytest.mark.parametrize(
    ("fault", "step", "phase"),
    [
        ("hang_data", 5, "data"),
        ("hang_forward", 5, "forward"),
        ("hang_backward", 5, "backward"),
        ("hang_step", 5, "step"),
        ("hang_save", 6, "save"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_phase_and_stack(corpus, tmp_path, fault, step, phase):
    job = Job(corpus, tmp_path / "run", *QUICK, fault=f"{fault}:1:{step}")
    assert job.ends() == [75, 75], job.output()
    said = (
        rf"warning: no progress for \d+ s: rank 1 \(\S+, pid {job.ranks[1].pid}\) is in {phase} of step {step}; stack, "
    )
    assert re.search(f"{said}.* > ", job.output()), job.output()
    assert f"is in {phase}" in read_json(job.run_dir / "verdict.json")["reason"]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_the_others_end(corpus, tmp_path, stopped):
    """Rank 0, too, which holds the store that ranks meet at, and writes the verdict."""
    job = Job(corpus, tmp_path / "run", *QUICK, "train.steps=2000")
    job.wait_for_step(5)
    os.kill(job.ranks[stopped].pid, signal.SIGSTOP)
    code = job.end_of(1 - stopped, 45)
    job.kill()
    assert code == 75, job.output()
    said = rf"rank {stopped} \(\S+, pid \d+\) was last seen in \w+ of step \d+ and gives no sign of life"
    assert re.search(f"warning: .*{said}", job.output()), job.output()
    assert re.search(said, read_json(job.run_dir / "verdict.json")["reason"])


def test_a_rank_that_dies_is_seen_where_no_collective_says_so(corpus, tmp_path):
    """As on GPUs, whose collectives wait: rank 0 is elsewhere when rank 1 dies."""
    job = Job(corpus, tmp_path / "run", fault="hang_forward:0:5")
    job.wait_for_step(3)  # the next one is reported a step later
    time.sleep(2)
    job.ranks[1].kill()
    assert job.end_of(0, 60) == 75, job.output()
    assert read_json(job.run_dir / "verdict.json")["reason"].startswith("rank 1 (")
    assert "died without a word in step 5" in read_json(job.run_dir / "verdict.json")["reason"]


def test_a_rank_that_fails_by_itself_is_named_and_no_requeue_asked(corpus, tmp_path):
    job = Job(corpus, tmp_path / "run", fault="crash:1:5")
    assert job.ends() == [1, 1], job.output()
    verdict = read_json(job.run_dir / "verdict.json")
    assert verdict["exit_code"] == 1
    assert "rank 1 failed in forward of step 5: ArithmeticError: a planted fault" in verdict["reason"], verdict


def test_a_slow_rank_is_named(corpus, tmp_path):
    from tests.helpers import metrics

    job = Job(corpus, tmp_path / "run", fault="slow:1:0")
    assert job.ends() == [0, 0], job.output()
    assert "warning: rank 1 is slow: 0." in job.output()
    lines = metrics(job.run_dir)
    assert all(line["slowest_rank"] == 1 and line["slowest_rank_seconds"] > 0.1 for s, line in lines.items() if s > 2)


def test_a_single_process_that_hangs_ends_too(corpus, tmp_path):
    job = Job(corpus, tmp_path / "run", *QUICK, size=1, fault="hang_data:0:5")
    assert job.ends() == [75], job.output()
    assert "is in data of step 5" in job.output() and "hanging" not in job.output()


def test_a_run_that_was_suspended_as_a_whole_goes_on(corpus, tmp_path):
    """By a scheduler, or Ctrl-Z and fg: nothing hung."""
    job = Job(corpus, tmp_path / "run", "train.steps=200", "train.eval_every=0", *QUICK, size=1)
    job.wait_for_step(5)
    os.kill(job.ranks[0].pid, signal.SIGSTOP)
    time.sleep(14)
    os.kill(job.ranks[0].pid, signal.SIGCONT)
    assert job.ends() == [0], job.output()
    assert "no progress" not in job.output()


@pytest.mark.parametrize("name", ["lost.json", "rank_00000.json", "end.json"])
def test_a_pipe_among_the_ranks_files_does_not_hold_the_watchdog_up(corpus, tmp_path, name):
    job = Job(corpus, tmp_path / "run", *QUICK, size=1, fault="hang_data:0:8")
    job.wait_for_step(6)
    path = job.run_dir / "ranks" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert job.ends(60) == [75], job.output()


def test_a_process_that_wakes_up_in_anothers_run_ends_without_a_word(corpus, tmp_path):
    old = Job(corpus, tmp_path / "run", *QUICK)
    old.wait_for_step(8)
    os.kill(old.ranks[0].pid, signal.SIGSTOP)
    assert old.end_of(1, 60) == 75, old.output()
    for path in old.run_dir.glob("owner.*.json"):  # as if its heartbeat were old
        os.utime(path, (0, 0))
    new = Job(corpus, old.run_dir)
    assert new.ends() == [0, 0], new.output()
    names = ("verdict.json", "metrics.jsonl", "ledger.jsonl", "ranks/rank_00000.json")
    before = {name: (new.run_dir / name).read_bytes() for name in names if (new.run_dir / name).exists()}
    os.kill(old.ranks[0].pid, signal.SIGCONT)
    assert old.end_of(0, 60) == 1, old.output()
    assert {name: (new.run_dir / name).read_bytes() for name in before} == before
    assert read_json(new.run_dir / "verdict.json")["exit_code"] == 0

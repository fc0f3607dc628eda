"""pretrain-check: real ranks of which one is made slow, or has fewer cores; the rule by itself."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from pathlib import Path

import pytest

from pretraining.cluster.health import Health, asked_faults, given_cores, given_memory, node_name
from pretraining.cluster.outliers import below, judge, median_without
from pretraining.commands.check import MOST_ROWS, check, report
from pretraining.parallel.launch import Launch
from tests.helpers import command, start_ranks

# What precedes the command in a rank of its own: two virtual nodes, and what is done to the second.
RANK = """
import os, sys, time
import pretraining.cluster.health as health
import pretraining.commands.check as check
rank = os.environ["SLURM_PROCID"]
os.environ["SLURMD_NODENAME"] = f"node{rank}"
STEADY
if rank == "1":
    HARM
sys.exit(check.main())
"""
# What a shared machine does to the figures that a test is not about.
STEADY_DISK = "check.measure_disk = lambda *arguments: 100.0"
STEADY = f"{STEADY_DISK}; health.multiply = lambda one, other: time.sleep(0.02)"
SLOW = """
    plain = health.multiply
    def slow(one, other):
        time.sleep(0.5)
        plain(one, other)
    health.multiply = slow
"""
FEWER_CORES = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
SILENT = "check.measure = lambda *arguments: time.sleep(60)"
NO_DISK = """
    def broken(*arguments):
        raise OSError("Input/output error")
    check.measure_disk = broken
"""


def run_check(tmp_path: Path, harm: str, seconds: int = 12, steady: str = "") -> tuple[list[int], str, Path]:
    """-> (exit codes, what the ranks said, run_dir/slurm)."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("HARM", harm.strip()).replace("STEADY", steady))
    ranks = start_ranks(2, f"run_dir={tmp_path / 'run'}", f"seconds={seconds}", program=(str(script),))
    outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], "".join(outputs), tmp_path / "run" / "slurm"


def test_a_rank_that_is_slowed_down_is_named(tmp_path: Path) -> None:
    codes, said, folder = run_check(tmp_path, SLOW, steady=STEADY_DISK)
    assert codes == [0, 0], said
    assert (folder / "outliers").read_text() == "node1\n", said
    assert "rank 1 (node1): " in said and "TFLOP/s, the others' median is" in said and "outliers: node1" in said
    found = json.loads((folder / "check.json").read_text())
    assert found["ranks"][1]["tflops"] < found["ranks"][0]["tflops"] / 1.1 and list(found["reasons"]) == ["1"]
    assert found["ranks"][0]["gb_per_second"] > 0 and found["disk_mb_per_second"] > 0
    assert not list(folder.glob(".check*"))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_a_rank_with_fewer_cores_is_named(tmp_path: Path) -> None:
    codes, said, folder = run_check(tmp_path, FEWER_CORES, steady=STEADY)
    assert codes == [0, 0] and "node1\n" in (folder / "outliers").read_text(), said
    assert "rank 1 (node1): 1 cores, the others' median is " in said


def test_a_rank_that_hangs_is_named_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    codes, said, folder = run_check(tmp_path, SILENT, seconds=4)
    assert codes[0] == 0 and codes[1] != 0, said  # the silent one is ended by its own clock
    assert (folder / "outliers").read_text() == "node1\n" and "gave no answer within 4 s" in said
    assert time.monotonic() - began < 60


def test_a_disk_that_fails_is_a_fault_of_its_node(tmp_path: Path) -> None:
    codes, said, folder = run_check(tmp_path, NO_DISK, steady=STEADY)
    assert codes == [0, 0] and "rank 1 (node1): Input/output error" in said
    assert (folder / "outliers").read_text() == "node1\n", said


def test_one_process_measures_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretraining.commands.check", f"run_dir={tmp_path}", "seconds=1") == 0
    assert "outliers: none" in capsys.readouterr().out
    found = json.loads((tmp_path / "slurm/check.json").read_text())
    assert found["ranks"][0]["cores"] == given_cores() and found["ranks"][0]["tflops"] > 0
    assert (tmp_path / "slurm/outliers").read_text() == ""


def test_keys_of_the_report_stand_in_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    check([f"run_dir={tmp_path}", "seconds=1"])
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)  # one that goes on ends this process
    lines = (tmp_path / "slurm/check.json").read_text().splitlines()
    assert lines[1:4] == [' "job": "77",', ' "start": "3",', ' "outliers": "",']


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm").write_text("")
    assert command("pretraining.commands.check", f"run_dir={tmp_path}") == 2
    assert "cannot be written to" in capsys.readouterr().err


def ranks(*figures: float, per_node: int = 1) -> list[Health]:
    return [Health(rank, f"n{rank // per_node}", tflops=value) for rank, value in enumerate(figures)]


@pytest.mark.parametrize(
    ("figures", "per_node", "nodes"),
    [
        ((10, 10, 10, 10), 1, []),
        ((10, 9.2, 10, 10), 1, []),  # within a tenth
        ((10, 8.9, 10, 10), 1, ["n1"]),
        ((10, 5), 1, ["n1"]),
        ((10, 10, 5, 5), 2, ["n1"]),  # two of one node
        ((10, 10, 10, 10, 10, 10, 10, 10, 5, 10, 10, 10, 10, 10, 10, 10), 8, ["n1"]),
        ((8.9, 10, 16, 10, 4, 10), 1, ["n4"]),  # a tenth below is not enough where figures differ
        ((10, 5, 10, 5), 2, []),  # each node has one: nobody is named
        ((10,), 1, []),
    ],
)
def test_the_rule(figures: tuple[float, ...], per_node: int, nodes: list[str]) -> None:
    assert judge(ranks(*figures, per_node=per_node)).nodes == nodes


def test_the_rule_is_that_of_the_other_ranks_median_and_deviation() -> None:
    values = {rank: float(value) for rank, value in enumerate([7, 3, 9, 4, 4, 8, 8.5, 7.5, 1])}
    found = []
    for rank, value in values.items():
        others = [v for r, v in values.items() if r != rank]
        assert median_without(sorted(values.values()), value) == statistics.median(others)
        if value < 0.9 * statistics.median(others) and value < statistics.median(others) - statistics.pstdev(others):
            found.append(rank)
    assert below(values, 0.1) == found != []


def test_a_thousand_ranks_are_judged_in_a_moment() -> None:
    many = ranks(*([10.0 + rank % 7 / 100 for rank in range(2047)] + [5.0]), per_node=8)
    began = time.process_time()
    verdict = judge(many)
    assert verdict.nodes == ["n255"] and time.process_time() - began < 2
    assert len(report(many, verdict).splitlines()) < MOST_ROWS


def test_what_slurm_was_asked_for_is_compared() -> None:
    health = Health(0, "n0", cores=2.0)
    assert asked_faults(health, Launch(), {"SLURM_CPUS_PER_TASK": "4"}) == ["2 cores, 4 were asked for"]
    assert asked_faults(health, Launch(), {"SLURM_CPUS_PER_TASK": "2"}) == []
    assert "no GPU can be used" in asked_faults(health, Launch(), {"SLURM_GPUS_ON_NODE": "4"})[0]
    assert "no GPU can be used" in asked_faults(health, Launch(), {"SLURM_GPUS_PER_NODE": "a100:4"})[0]
    assert asked_faults(Health(0, "n0", device="cuda:0, X"), Launch(), {"SLURM_GPUS_ON_NODE": "4"}) == []
    assert node_name({"SLURMD_NODENAME": "n7"}) == "n7" and node_name({})


def test_quotas_of_control_groups_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert given_cores(tmp_path) == 0.5 and given_memory(tmp_path) == 1_000_000
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert given_cores(tmp_path) == len(os.sched_getaffinity(0)) and given_memory(tmp_path) > 1_000_000

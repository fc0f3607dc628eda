"""What a run's folder says of its starts, and the run's clock over them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.common.errors import InputError
from pretraining.run.metrics import read_metrics
from pretraining.run.starts import STARTS, ThisStart, note_end, note_start, read_starts
from tests.helpers import ROOT, TINY, metrics, pretrain_process, run_process


def test_the_clock_goes_on_over_starts_and_leaves_out_what_lies_between(tmp_path: Path) -> None:
    first = note_start(tmp_path, ThisStart(began=time.time() - 10), 0)
    assert 10 <= first.seconds() < 11
    note_end(tmp_path, first)
    (tmp_path / STARTS).write_text((tmp_path / STARTS).read_text() + '{"kind": "sta')  # torn
    second = note_start(tmp_path, ThisStart(began=time.time() - 5), 3)
    assert 15 <= second.seconds() < 16
    # killed: only the last line tells how long it lived
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0, "time": 40.0}\n')
    assert 40 <= note_start(tmp_path, ThisStart(), 5).seconds() < 41
    starts = read_starts(tmp_path)
    assert [(s["step"], s["reached"], s["exit_code"]) for s in starts] == [(0, 0, None), (3, 0, None), (5, 7, None)]
    assert [round(s["seconds"]) for s in starts] == [0, 10, 40] and all(s["hosts"] for s in starts)


def test_a_link_in_the_place_of_the_starts_is_refused(tmp_path: Path) -> None:
    (tmp_path / STARTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"starts\.jsonl is not a plain file"):
        note_start(tmp_path, ThisStart(), 0)
    assert not (tmp_path / "elsewhere").exists()


def test_lines_of_a_run_that_was_stopped_and_killed_have_one_clock(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = [*TINY, f"data.path={corpus}", f"run_dir={run}", "train.checkpoint_every=2", "train.steps=5000"]
    for kill in (False, True):
        process = subprocess.Popen([sys.executable, "-m", "pretraining.train", *keys], cwd=ROOT, stdout=subprocess.PIPE)
        reached = len(metrics(run)) if (run / "metrics.jsonl").exists() else 0
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < reached + 8:
            time.sleep(0.05)
        process.kill() if kill else process.terminate()
        process.communicate(timeout=60)
    (now,) = (max(metrics(run)),)
    assert pretrain_process(*keys, f"train.steps={now + 4}").returncode == 0
    first, second, third = read_starts(run)
    assert (first["step"], second["exit_code"], third["exit_code"]) == (0, 75, None)
    assert second["step"] == second["reached"] > 0 and third["reached"] >= third["step"] > second["step"]
    times = [float(str(line["time"])) for line in read_metrics(run / "metrics.jsonl")]
    assert times == sorted(times) and times[0] > 0 and len(set(times)) > len(times) / 2
    assert third["seconds"] >= second["seconds"] > 0
    ends = [line for line in map(json.loads, (run / STARTS).read_text().splitlines()) if line["kind"] == "end"]
    assert len(ends) == 2 and ends[-1]["seconds"] >= times[-1]


COMPILER = """
import sys
from pretraining.train import pretrain
assert pretrain(sys.argv[1:]) == 0
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


@pytest.mark.parametrize("engine", ["engine=torch", "engine=deepspeed"])
def test_a_start_does_not_load_torchs_compiler(engine: str, corpus: Path, tmp_path: Path) -> None:
    """A second of CPU in each rank, and it is never used."""
    settings = [*TINY, engine, f"data.path={corpus}", f"run_dir={tmp_path / 'run'}", "train.steps=1"]
    done = run_process(sys.executable, "-c", COMPILER, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"

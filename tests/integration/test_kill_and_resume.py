"""Real processes, really killed: a resumed run is the uninterrupted one, bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.common.json_files import read_json
from tests.helpers import ROOT, TINY, free_port, metrics

STEPS = 40


def start(corpus, run_dir, *more, ranks=1):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    command = [
        sys.executable,
        *(launcher if ranks > 1 else []),
        "-m",
        "pretraining.train",
        *TINY,
        f"data.path={corpus}",
        f"run_dir={run_dir}",
        f"train.steps={STEPS}",
        "train.checkpoint_every=4",
        "model.dropout=0.1",
        "data.num_workers=1",
        *more,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(run_dir, step, process):
    deadline = time.time() + 120
    while time.time() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.stdout.read())
        path = run_dir / "metrics.jsonl"
        if path.exists() and path.read_text().count('"loss"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError("no progress")


def losses(run_dir):
    return [(line["step"], line["loss"], line["batch_hash"]) for line in metrics(run_dir).values()]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    process = start(corpus, run_dir)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return run_dir


def test_sigkill_at_any_step(corpus, whole, tmp_path):
    """Killed three times at unforeseen moments (dropout on, workers running), then left to finish."""
    for step in (2, 13, 22):
        process = start(corpus, tmp_path / "run")
        wait_for_step(tmp_path / "run", step, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(corpus, tmp_path / "run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == losses(whole)


def test_sigkill_of_two_ranks_under_zero(corpus, tmp_path):
    zero = ("engine=deepspeed", "engine.zero_stage=2", "train.steps=16")
    uninterrupted = start(corpus, tmp_path / "whole", *zero, ranks=2)
    output, _ = uninterrupted.communicate(timeout=240)
    assert uninterrupted.returncode == 0, output
    process = start(corpus, tmp_path / "run", *zero, ranks=2)
    wait_for_step(tmp_path / "run", 6, process)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", f"run_dir={tmp_path / 'run'}"], check=False)
    process.wait()
    process = start(corpus, tmp_path / "run", *zero, ranks=2)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_ctrl_c_says_what_was_saved_and_how_to_go_on(corpus, tmp_path):
    """Without run_dir as well: its folder's name is what the next command needs."""
    process = start(corpus, "null")
    deadline = time.time() + 120
    while "step 2/" not in process.stdout.readline():
        assert process.poll() is None and time.time() < deadline
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75 and "Traceback" not in output, output
    assert "stopping after this step and saving a checkpoint; Ctrl-C again ends at once" in output
    told = r"stopped by SIGINT: step (\d+) is saved in (\S+)\. The same command goes on there \(run_dir=(\S+)\)"
    found = re.search(told, output)
    assert found is not None, output
    folder, run_dir = ROOT / found.group(2), ROOT / found.group(3)
    try:
        assert folder.name == f"step_{int(found.group(1)):08d}" and (folder / "manifest.json").is_file()
        again = start(corpus, "null")
        output, _ = again.communicate(timeout=200)
        assert again.returncode == 0 and f"run_dir={found.group(3)} is continued" in output, output
        assert set(metrics(run_dir)) == set(range(1, STEPS + 1))
    finally:
        shutil.rmtree(run_dir)


def test_sigterm_saves_and_asks_for_a_requeue(corpus, whole, tmp_path):
    process = start(corpus, tmp_path / "run")
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    verdict = read_json(tmp_path / "run" / "verdict.json")
    assert verdict == {"exit_code": 75, "reason": "stopped by SIGTERM"}
    done = max(metrics(tmp_path / "run"))
    newest = max(int(f.name[5:]) for f in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == done
    process = start(corpus, tmp_path / "run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and losses(tmp_path / "run") == losses(whole)
    assert json.loads((tmp_path / "run" / "verdict.json").read_text())["exit_code"] == 0

"""All ranks see the same, or all stop: real processes, started as srun would."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import TINY, free_port, metrics, start_rank, start_ranks

STEPS = ("train.steps=4", "train.checkpoint_every=2", "train.timeout_seconds=60")


def settings(*more):
    return [*TINY, "data.path=data", "run_dir=run", *STEPS, *more]


@pytest.fixture
def hosts(corpus, tmp_path):
    """The folders of two hosts, each with its own copy of the data."""
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        folder.mkdir()
        shutil.copytree(corpus, folder / "data")
    return folders


def run(hosts, *more, own=((), ())):
    """One rank on each host, `own` overrides for each -> (exit codes, outputs, seconds)."""
    port, began = free_port(), time.monotonic()
    ranks = [start_rank(r, 2, port, *settings(*more, *own[r]), cwd=hosts[r]) for r in range(2)]
    outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], outputs, time.monotonic() - began


def verdict(host):
    return json.loads((host / "run" / "verdict.json").read_text())


def test_another_config_on_one_rank(hosts):
    codes, outputs, _ = run(hosts, own=(("optimizer.lr=6e-4",), ("optimizer.lr=1e-2", "train.log_every=2")))
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "the ranks do not agree. rank 1: optimizer.lr is 0.01, on rank 0 0.0006; train.log_every" in output
    assert verdict(hosts[0])["exit_code"] == 2 and not (hosts[0] / "run" / "checkpoints").exists()


def test_a_command_that_is_wrong_on_one_rank_alone(hosts):
    codes, outputs, seconds = run(hosts, own=((), ("train.stepz=3",)))
    assert codes == [2, 2] and all("train.stepz" in output for output in outputs), outputs
    assert seconds < 60


@pytest.mark.parametrize("change", ["missing", "other"])
def test_other_data_on_one_host(hosts, change):
    if change == "missing":
        shutil.rmtree(hosts[1] / "data")
    else:
        path = hosts[1] / "data" / "manifest.json"
        manifest = json.loads(path.read_text())
        shard = manifest["splits"]["train"]["shards"][0]
        shard["sha256"] = "0" * len(shard["sha256"])
        path.write_text(json.dumps(manifest))
    codes, outputs, _ = run(hosts)
    assert codes == [2, 2], outputs
    expected = "rank 1: data/manifest.json is missing" if change == "missing" else "rank 1: data.path's content is"
    assert expected in outputs[0], outputs[0]


def test_another_checkpoint_on_one_host(hosts):
    """As a network file system may show it, or a disk of each host."""
    (hosts[0] / "run").mkdir()
    (hosts[1] / "run").symlink_to(hosts[0] / "run")
    codes, outputs, _ = run(hosts)
    assert codes == [0, 0], outputs
    (hosts[1] / "run").unlink()
    shutil.copytree(hosts[0] / "run", hosts[1] / "run")
    before = (hosts[0] / "run" / "metrics.jsonl").read_bytes()
    seen = hosts[1] / "run" / "checkpoints" / "step_00000004"
    (seen / "manifest.json").write_text((seen / "manifest.json").read_text() + " ")
    told = "rank 1: run/checkpoints/step_00000004: "
    codes, outputs, _ = run(hosts, "train.steps=6")
    assert codes == [2, 2] and f"{told}this rank sees another checkpoint than rank 0" in outputs[0], outputs
    shutil.rmtree(seen)  # an older one is there
    codes, outputs, _ = run(hosts, "train.steps=6")
    assert codes == [2, 2] and f"{told}no such checkpoint" in outputs[0], outputs
    assert before == (hosts[0] / "run" / "metrics.jsonl").read_bytes()


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def start(corpus, run_dir, *more, size=2, **options):
    settings = [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", *more]
    return start_ranks(size, *settings, **options)


def wait_for_steps(run_dir, steps, ranks):
    deadline = time.monotonic() + 100
    while not (run_dir / "metrics.jsonl").exists() or len(metrics(run_dir)) < steps:
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
        time.sleep(0.05)


def ends(ranks, timeout):
    outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], outputs


def read_verdict(run_dir):
    return json.loads((run_dir / "verdict.json").read_text())


def listens(port):
    return any(f":{port:04X} " in line for line in Path("/proc/net/tcp").read_text().splitlines()[1:]) or any(
        f":{port:04X} " in line for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]
    )


def alone(corpus, run_dir, *more):
    """Rank 0 of two, which waits for the other."""
    port = free_port()
    rank = start_rank(0, 2, port, *TINY, f"data.path={corpus}", f"run_dir={run_dir}", *more)
    deadline = time.monotonic() + 60
    while not listens(port):
        assert time.monotonic() < deadline and rank.poll() is None
        time.sleep(0.05)
    return rank


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_waiting_for_peers(corpus, run_dir, signum):
    rank = alone(corpus, run_dir)
    began = time.monotonic()
    rank.send_signal(signum)
    assert rank.wait(timeout=20) == 75 and time.monotonic() - began < 5
    assert "before a step was trained" in read_verdict(run_dir)["reason"]


def test_a_peer_that_never_comes(corpus, run_dir):
    rank = alone(corpus, run_dir, "train.timeout_seconds=3")
    began = time.monotonic()
    assert rank.wait(timeout=60) == 75 and time.monotonic() - began < 20
    assert "the 2 ranks did not meet within 3 s" in read_verdict(run_dir)["reason"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed(corpus, run_dir, killed):
    """The other one says so, and the same command goes on."""
    settings = (corpus, run_dir, "train.checkpoint_every=2")
    ranks = start(*settings, "train.steps=4000")
    wait_for_steps(run_dir, 3, ranks)
    ranks[killed].kill()
    began = time.monotonic()
    codes, outputs = ends(ranks, timeout=60)
    assert codes[1 - killed] == 75 and time.monotonic() - began < 30, outputs
    assert f"rank {killed} " in outputs[1 - killed]
    found = read_verdict(run_dir)
    assert found["exit_code"] == 75 and f"rank {killed} " in found["reason"]


def test_a_signal_while_another_rank_hangs(corpus, run_dir):
    ranks = start(corpus, run_dir, "train.steps=4000", "train.timeout_seconds=4")
    wait_for_steps(run_dir, 2, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    began = time.monotonic()
    ranks[0].send_signal(signal.SIGTERM)
    assert ranks[0].wait(timeout=60) == 75 and time.monotonic() - began < 20
    assert read_verdict(run_dir)["exit_code"] == 75
    ranks[1].kill()
    ends(ranks, timeout=60)


FAILING = """
import os
from pretraining import trainer
from pretraining.train import console
whole = trainer.Trainer.train_step
def fail(self, data, began):
    if self.step == 2 and self.world.rank == 1:
        raise RuntimeError("out of memory")
    return whole(self, data, began)
trainer.Trainer.train_step = fail
console()
"""


def test_a_rank_that_fails_by_itself_is_no_lost_peer(corpus, run_dir):
    """A restart would not mend it."""
    ranks = start(corpus, run_dir, "train.steps=8", program=("-c", FAILING))
    codes, outputs = ends(ranks, timeout=100)
    assert codes == [1, 1], outputs
    assert read_verdict(run_dir)["exit_code"] == 1 and "rank 1 failed" in read_verdict(run_dir)["reason"]


def test_a_second_job_changes_nothing_of_the_first(corpus, run_dir):
    settings = (corpus, run_dir, "train.checkpoint_every=2")
    (first,) = start(*settings, "train.steps=4000", size=1)
    wait_for_steps(run_dir, 3, [first])
    (second,) = start(*settings, "train.steps=4000", size=1)
    (wrong,) = start(*settings, "train.stepz=4000", size=1)
    codes, outputs = ends([second, wrong], timeout=100)
    assert codes == [2, 2] and f"pid {first.pid}" in outputs[0], outputs
    assert not (run_dir / "verdict.json").exists() and first.poll() is None
    first.kill()  # nor does it leave anything that the next one would wait for
    first.wait()
    (third,) = start(*settings, "train.steps=5000", size=1)
    step = max(metrics(run_dir))
    wait_for_steps(run_dir, step + 1, [third])
    taken_over = json.loads((run_dir / "owner.2.json").read_text())
    assert taken_over["pid"] == third.pid
    # as a job elsewhere does that took this one for dead
    (run_dir / "owner.3.json").write_text(json.dumps(taken_over | {"host": "elsewhere", "pid": 1, "machine": ""}))
    reached = max(metrics(run_dir))
    codes, outputs = ends([third], timeout=60)
    assert codes == [1] and "was taken over by another job (host elsewhere, pid 1" in outputs[0]
    assert not (run_dir / "verdict.json").exists()
    assert max(int(f.name[5:]) for f in (run_dir / "checkpoints").glob("step_*")) <= reached + 1


EVALUATING = """
import os, signal
from pretraining import trainer
from pretraining.train import console
whole = trainer.Trainer.evaluate
def evaluate(self):
    if self.step == 3:
        inner = self.engine.evaluate
        def slow(batch):
            self.batches = getattr(self, "batches", 0) + 1
            if self.batches == 2 and self.world.rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(batch)
        self.engine.evaluate = slow
    whole(self)
    print("evaluated", self.step, getattr(self, "batches", 0), flush=True)
trainer.Trainer.evaluate = evaluate
console()
"""


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_during_an_evaluation(corpus, run_dir, last):
    """One rank is asked; both leave the evaluation at its next batch, and do it again after the restart."""
    settings = (corpus, run_dir, f"train.steps={3 if last else 5}", "train.eval_every=3", "train.eval_batches=null")
    codes, outputs = ends(start(*settings, program=("-c", EVALUATING)), timeout=100)
    assert codes == [75, 75], outputs
    assert "evaluated 3 2\n" in outputs[0] and "step 3 is saved in" in outputs[0]
    codes, outputs = ends(start(*settings), timeout=100)
    assert codes == [0, 0], outputs
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss" in line and line["step"] == 3] == [3]


def test_ranks_end_when_torchrun_is_killed(corpus, run_dir):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    settings = [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=4000"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "pretraining.train", *settings], start_new_session=True
    )
    wait_for_steps(run_dir, 3, [process])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGUSR1)  # which it does not handle
    process.wait()
    deadline = time.monotonic() + 30
    while any(
        os.path.exists(f"/proc/{pid}") and b"pretraining" in Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in children
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = read_verdict(run_dir)
    # The second where the other rank notices it before the one that writes
    assert found["exit_code"] == 75 and found["reason"] in ("the launcher died", "another rank was asked to stop")
    assert (run_dir / "checkpoints" / f"step_{max(metrics(run_dir)):08d}" / "manifest.json").exists()

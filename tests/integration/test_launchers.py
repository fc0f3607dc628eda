"""The same run, started plainly, by torchrun, by the deepspeed launcher and as srun would."""

import os
import sys
from pathlib import Path

import pytest

from data_pipeline.common.json_files import read_json
from tests.helpers import TINY, free_port, metrics, run_process, start_ranks

BIN = Path(sys.executable).parent


def overrides(corpus, run_dir, *more):
    return [*TINY, f"data.path={corpus}", f"run_dir={run_dir}", "train.steps=3", *more]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    done = run_process(str(BIN / "pretrain"), *overrides(corpus, run_dir))
    assert done.returncode == 0, done.stderr
    return metrics(run_dir)


def same(run_dir, plain):
    found = metrics(run_dir)
    assert all(found[s]["batch_hash"] == plain[s]["batch_hash"] for s in plain)
    assert all(abs(found[s]["loss"] - plain[s]["loss"]) < 2e-6 for s in plain)


def test_torchrun(corpus, tmp_path, plain):
    done = run_process(
        str(BIN / "torchrun"),
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        "-m",
        "pretraining.train",
        *overrides(corpus, tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", plain)


def test_deepspeed_launcher(corpus, tmp_path, plain):
    """It appends --local_rank=N to the arguments."""
    done = run_process(
        str(BIN / "deepspeed"),
        "--num_gpus",
        "2",
        "--master_port",
        str(free_port()),
        "--module",
        "pretraining.train",
        *overrides(corpus, tmp_path / "run", "engine=deepspeed", "engine.zero_stage=1"),
        DS_ACCELERATOR="cpu",
        PATH=f"{BIN}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same(tmp_path / "run", plain)


def test_srun_environment_and_a_run_dir_that_rank_0_names(corpus, tmp_path, plain):
    """Two tasks with SLURM's variables agree on one new run_dir."""
    tasks = start_ranks(2, *overrides(corpus, "null"), cwd=tmp_path)
    outputs = [task.communicate(timeout=200)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    (run_dir,) = (tmp_path / "runs").iterdir()
    same(run_dir, plain)
    assert read_json(run_dir / "verdict.json") == {"exit_code": 0, "reason": "done"}


@pytest.mark.parametrize(
    "size, engine",
    [
        (2, ("engine=torch",)),
        (2, ("engine=deepspeed", "engine.zero_stage=2")),
        (2, ("engine=megatron", "engine.tensor_parallel=2")),
        (1, ("engine=deepspeed",)),
    ],
    ids=["ddp", "zero2", "tp2", "deepspeed alone"],
)
def test_the_command_ends_without_winding_up_the_interpreter(corpus, tmp_path, size, engine):
    """Threads of process groups are alive by then: one that dropped a tensor meanwhile would abort a perfect run."""
    ranks = start_ranks(size, *overrides(corpus, tmp_path / "run", *engine), program=("-c", WOUND_UP))
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, outputs
    assert "exit functions ran" in outputs[0]
    assert "interpreter wound up" not in "".join(outputs)


WOUND_UP = """
import atexit
from pretraining.train import console
class Witness:
    def __del__(self):
        print("interpreter wound up", flush=True)
witness = Witness()
atexit.register(print, "exit functions ran")
console()
"""


def test_an_exception_ends_the_process_though_workers_ignore_sigterm(corpus, tmp_path):
    (rank,) = start_ranks(1, *overrides(corpus, tmp_path / "run", "data.num_workers=2"), program=("-c", FAILING))
    output = rank.communicate(timeout=100)[0]
    assert rank.returncode == 1 and "RuntimeError: out of memory" in output
    assert read_json(tmp_path / "run" / "verdict.json") == {"exit_code": 1, "reason": "out of memory"}


FAILING = """
from pretraining import train, trainer
whole = trainer.Trainer.train_step
def fail(self, data, began):
    if self.step == 2:
        raise RuntimeError("out of memory")
    return whole(self, data, began)
trainer.Trainer.train_step = fail
if __name__ == "__main__":
    train.console()
"""

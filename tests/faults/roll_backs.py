"""A roll-back after a loss spike under a layout, as real processes: what it passes over, and that a run which was
killed right after it goes on exactly. `make soak` does it under all of LAYOUTS."""

from __future__ import annotations

from pathlib import Path

from pretraining.run.ledger import Ledger
from tests.faults.runs import Job, losses
from tests.helpers import metrics

LAYOUTS = {
    "zero1": ("engine=deepspeed", "engine.zero_stage=1"),
    "zero2": ("engine=deepspeed", "engine.zero_stage=2"),
    "zero3": ("engine=deepspeed", "engine.zero_stage=3"),
    "tensor_parallel": ("engine=megatron", "engine.tensor_parallel=2"),
    "shard_optimizer": ("engine.shard_optimizer=true",),
}
BAD = "180"  # a sample of step 23
STEPS = 27


def roll_back_and_kill(corpus: Path, folder: Path, layout: str) -> None:
    """Raises AssertionError where something is not as it should be."""
    keys = ("train.on_spike=rollback", f"train.steps={STEPS}", *LAYOUTS[layout])
    whole = Job(corpus, folder / "whole", *keys, fault=f"spike:0,1:{BAD}")
    assert whole.ends() == [0, 0], whole.output()
    require_rolled_back(whole)
    killed = Job(corpus, folder / "killed", *keys, fault=f"spike_kill:0,1:{BAD}")
    assert killed.ends() == [-9, -9], killed.output()
    again = Job(corpus, killed.run_dir, *keys, fault=f"spike:0,1:{BAD}")
    assert again.ends() == [0, 0], again.output()
    assert losses(again.run_dir) == losses(whole.run_dir)
    assert len(Ledger(again.run_dir).read("rollback")) == 1


def require_rolled_back(job: Job) -> None:
    assert "rolled back from the loss spike of step 23 to step 20" in job.output()
    lines = metrics(job.run_dir)
    assert [lines[step]["samples"] for step in (20, 21, STEPS)] == [160, 200, 248]  # steps 21 to 24 had been trained
    assert not any(line.get("spike") for line in lines.values())
    (entry,) = Ledger(job.run_dir).read("rollback")
    assert (entry["step"], entry["to_step"]) == (23, 20)
    assert (entry["from"]["number"], entry["to"]["number"]) == (160, 192)
    (spike,) = Ledger(job.run_dir).read("spike")
    assert (spike["step"], spike["samples"]) == (23, list(range(176, 184)))

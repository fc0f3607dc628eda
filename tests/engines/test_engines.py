"""Every engine against one process: same samples, same losses, same weights; and resuming, bit for bit."""

import math
from pathlib import Path

import pytest
import torch

from pretraining.build import build, read_inputs
from pretraining.config import load_config
from pretraining.parallel.launch import Launch
from pretraining.parallel.world import start_world
from pretraining.run.checkpoint_format import newest_checkpoint
from pretraining.run.signals import StopRequest
from tests.helpers import TINY, finished_weights, metrics, run_world, train_alone, train_in_world

LAYOUTS = {"ddp": [], **{f"zero{s}": ["engine=deepspeed", f"engine.zero_stage={s}"] for s in range(4)}}
STEPS = 6
# Adafactor's averages are zero before the first update: nothing that is not finite may meet them.
BAD = ["train.precision=fp16", "train.steps=4", "optimizer=adafactor", "optimizer.eps=[1e-30,1e-3]"]


def overrides(corpus, run_dir, *more):
    return [
        *TINY,
        f"data.path={corpus}",
        f"run_dir={run_dir}",
        f"train.steps={STEPS}",
        "model.dropout=0.0",
        "scheduler=constant",
        "train.grad_clip=0.5",
        "optimizer.layer_decay=0.7",
        *more,
    ]


def trainer_of(world, *overrides):
    config = load_config(list(overrides))
    return build(config, read_inputs(config), world, Path(config.run_dir), StopRequest())


def train_with_a_bad_step(world, *overrides):
    """The losses of steps 1 and 3 are infinite."""
    trainer = trainer_of(world, *overrides)
    loss = trainer.objective.loss
    trainer.objective.loss = lambda model, batch: {
        term: value * (math.inf if trainer.step in (0, 2) else 1.0) for term, value in loss(model, batch).items()
    }
    trainer.fit()


def run_all(world, corpus, folder):
    """All layouts one after another in the same ranks: importing and starting DeepSpeed takes its time."""
    for name, layout in LAYOUTS.items():
        train_in_world(world, *overrides(corpus, folder / name, *layout))
        train_in_world(world, *overrides(corpus, folder / f"{name}-half", *layout, "train.steps=3"))
        train_in_world(world, *overrides(corpus, folder / f"{name}-half", *layout))
        train_with_a_bad_step(world, *overrides(corpus, folder / f"{name}-bad", *layout, *BAD))
    train_in_world(world, *overrides(corpus, folder / "zero2-bf16", *LAYOUTS["zero2"], "train.precision=bf16"))
    train_in_world(world, *overrides(corpus, folder / "zero3-fp16", *LAYOUTS["zero3"], "train.precision=fp16"))


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    train_alone(*overrides(corpus, folder / "one"))
    train_with_a_bad_step(start_world(Launch()), *overrides(corpus, folder / "one-bad", *BAD))
    for precision in ("bf16", "fp16"):
        train_alone(*overrides(corpus, folder / f"one-{precision}", f"train.precision={precision}"))
    run_world(2, run_all, corpus, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_process(runs, layout):
    require_same(runs, runs / layout)


@pytest.mark.parametrize("stage", [1, 3])
def test_zero_times_tensor_parallel_without_data_parallel(runs, corpus, tmp_path, stage):
    run_world(
        2,
        train_in_world,
        *overrides(
            corpus, tmp_path / "run", "engine=deepspeed", "engine.tensor_parallel=2", f"engine.zero_stage={stage}"
        ),
        tensor_parallel=2,
    )
    require_same(runs, tmp_path / "run")


def require_same(runs, run_dir):
    one, other = metrics(runs / "one"), metrics(run_dir)
    assert len(other) == STEPS
    for step, line in other.items():
        assert line["batch_hash"] == one[step]["batch_hash"]
        assert (line["samples"], line["tokens"], line["lr"]) == tuple(one[step][k] for k in ("samples", "tokens", "lr"))
        assert abs(line["loss"] - one[step]["loss"]) < 2e-6
        assert abs(line["grad_norm"] - one[step]["grad_norm"]) < 2e-5
    expected = finished_weights(runs / "one")
    for name, tensor in finished_weights(run_dir).items():
        assert (tensor - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-9, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs, layout):
    whole, resumed = metrics(runs / layout), metrics(runs / f"{layout}-half")
    assert [resumed[s]["loss"] for s in resumed] == [whole[s]["loss"] for s in whole]
    expected = finished_weights(runs / layout)
    found = finished_weights(runs / f"{layout}-half")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("layout, precision", [("zero2", "bf16"), ("zero3", "fp16")])
def test_low_precision_is_the_same_in_every_engine(runs, layout, precision):
    one, other = metrics(runs / f"one-{precision}"), metrics(runs / f"{layout}-{precision}")
    full = metrics(runs / "one")
    for step in one:
        assert abs(one[step]["loss"] - other[step]["loss"]) < 1e-3
        assert abs(one[step]["loss"] - full[step]["loss"]) < 0.05
    assert any(one[step]["loss"] != full[step]["loss"] for step in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_is_not_finite_is_skipped_and_told(runs, layout):
    """DeepSpeed finds it out by itself under ZeRO and does not call the optimizer at all."""
    one, other = metrics(runs / "one-bad"), metrics(runs / f"{layout}-bad")
    assert [step for step, line in other.items() if line.get("skipped")] == [1, 3]
    assert [line["loss_scale"] for line in other.values()] == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert all(abs(other[step]["loss"] - one[step]["loss"]) < 1e-3 for step in (2, 4))
    updates = finished_weights(runs / f"{layout}-bad")["optimizer.updates"]
    assert updates == finished_weights(runs / "one-bad")["optimizer.updates"] == 2
    assert all(tensor.isfinite().all() for tensor in finished_weights(runs / f"{layout}-bad").values())


def count_reductions(world, *overrides):
    """-> by step, how often DDP reduced a whole round of buckets."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    trainer = trainer_of(world, *overrides)
    rounds = dict.fromkeys(range(1, STEPS + 1), 0)

    def hook(group, bucket):
        rounds[trainer.step + 1] += bucket.is_last()
        return allreduce_hook(group, bucket)

    trainer.engine.distributed.register_comm_hook(None, hook)
    trainer.fit()
    return rounds


def test_ddp_reduces_once_a_step_however_many_micro_batches(corpus, tmp_path):
    of_four = overrides(corpus, tmp_path / "r", "train.micro_batch_size=1")  # 8 sequences over 2 ranks
    assert run_world(2, count_reductions, *of_four) == [dict.fromkeys(range(1, STEPS + 1), 1)] * 2


def test_the_reference_hands_layer_decay_on(corpus, tmp_path):
    """The others are compared with it."""
    engine = trainer_of(start_world(Launch()), *overrides(corpus, tmp_path / "r")).engine
    scales = {shard.fragment.name: shard.settings.lr_scale for shard in engine.optimizer.shards}
    assert [
        scales[name]
        for name in ("token_embedding.weight", "blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight", "final_norm.weight")
    ] == [0.7**3, 0.7**2, 0.7, 1.0]


def test_two_runs_of_different_layouts_share_a_checkpoint(runs, corpus, tmp_path):
    """Written by ZeRO 3 on two ranks, continued by one process."""
    source = newest_checkpoint(runs / "zero3" / "checkpoints").folder
    train_alone(*overrides(corpus, tmp_path / "r", f"train.resume={source}", "train.steps=8"))
    train_alone(*overrides(corpus, tmp_path / "whole", "train.steps=8"))
    whole, resumed = metrics(tmp_path / "whole"), metrics(tmp_path / "r")
    assert sorted(resumed) == [7, 8]
    assert all(abs(resumed[s]["loss"] - whole[s]["loss"]) < 1e-5 for s in resumed)

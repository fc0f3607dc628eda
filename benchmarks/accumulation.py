"""Step time with gradient accumulation under DDP on two gloo ranks, with and without reducing every micro-batch.

    python -m benchmarks.accumulation        (or make bench-accumulation)

DDP decides at the forward whether the backward that follows reduces: `no_sync` must hold around both. Beside our
engine, the same engine with `no_sync` around the backward alone. They take turns, one step each, on the same batch.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor

from pretraining.engines.base import Batch
from pretraining.engines.torch import TorchEngine
from pretraining.feeds import gather_steps

RANKS, MICRO_BATCHES, ROUNDS, WARM_UP = 2, 4, 40, 4
RUN = [
    "model=gpt_debug",
    "model.hidden_size=320",
    "model.num_layers=6",
    "model.num_heads=4",
    "model.max_seq_len=128",
    f"train.global_batch_size={RANKS * MICRO_BATCHES}",
    "train.micro_batch_size=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "tracking.wandb=disabled",
    "data.num_workers=0",
]


class EveryMicroBatch(TorchEngine):
    """Reduces every micro-batch."""

    def forward_backward(self, batch: Batch, weights: Mapping[str, float], last: bool) -> dict[str, Tensor]:
        assert self.distributed is not None
        sums = self.distributed(batch)
        with contextlib.nullcontext() if last else self.distributed.no_sync():
            self.scaled(sums, weights).backward()
        return sums


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        prepare_text(Path(folder))
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        torch.multiprocessing.spawn(rank_main, (port, Path(folder)), RANKS)


def prepare_text(folder: Path) -> None:
    from data_pipeline.common.compose import compose_config
    from data_pipeline.prepare import PrepareConfig, prepare

    inputs = [f"corpus.inputs=[{sysconfig.get_path('stdlib')}/*.py]", f"output={folder / 'data'}"]
    prepare(compose_config("prepare", [*inputs, "tokenizer.vocab_size=2048"], PrepareConfig))


def rank_main(rank: int, port: int, folder: Path) -> None:
    from pretraining.build import build, read_inputs
    from pretraining.config import load_config
    from pretraining.parallel.launch import read_launch
    from pretraining.parallel.world import start_world, stop_world
    from pretraining.run.signals import StopRequest

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    config = load_config([*RUN, f"data.path={folder / 'data'}", f"run_dir={folder / 'run'}"])
    world = start_world(read_launch())
    torch.set_num_threads(1)
    trainer = build(config, read_inputs(config), world, folder / "run", StopRequest())
    feed = trainer.feeds.training(trainer.position)
    data = next(gather_steps(feed, MICRO_BATCHES, trainer.reported, world, trainer.stop))
    times: dict[type, list[float]] = {TorchEngine: [], EveryMicroBatch: []}
    for number in range(WARM_UP + ROUNDS):
        for kind in (TorchEngine, EveryMicroBatch) if number % 2 else (EveryMicroBatch, TorchEngine):
            trainer.engine.__class__ = kind
            torch.distributed.barrier()
            began = time.perf_counter()
            trainer.train_step(data, began)
            trainer.report()
            times[kind] += [time.perf_counter() - began] if number >= WARM_UP else []
    if rank == 0:
        once, each = times.values()
        ratios = [a / b for a, b in zip(once, each, strict=True)]
        print(
            f"{MICRO_BATCHES} micro-batches on {RANKS} ranks, median of {ROUNDS} steps: reduced once "
            f"{statistics.median(once):.3f} s, each time {statistics.median(each):.3f} s; "
            f"ratio of all steps {sum(once) / sum(each):.3f}, median {statistics.median(ratios):.3f}"
        )
    stop_world()


if __name__ == "__main__":
    main()

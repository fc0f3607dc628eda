"""What the trainer costs beside a bare loop: same model, same batches; forward, backward, optimizer, no data loading.

    python -m benchmarks.trainer        (or make bench-trainer)

Step by step in turn, each step of both on the same batch and the same number of threads, one core being left to the
loader's worker: so the machine's noise meets both alike.
"""

from __future__ import annotations

import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch

from pretraining.engines.base import Batch, EngineBase
from pretraining.feeds import gather_steps
from pretraining.objectives.models import DecoderWithHead
from pretraining.trainer import Trainer

STEPS, WARM_UP = 200, 10
MODEL = [
    "model=gpt_debug",
    "model.hidden_size=256",
    "model.num_layers=4",
    "model.num_heads=4",
    "model.max_seq_len=128",
    "train.global_batch_size=8",
    "train.micro_batch_size=8",
    "data.num_workers=1",
]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder))
        ours, theirs = zip(*_times(trainer), strict=True)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    tokens = trainer.units / trainer.step
    print(
        f"trainer {tokens / statistics.median(ours):,.0f} tokens/s, "
        f"bare loop {tokens / statistics.median(theirs):,.0f} tokens/s; "
        f"time of all steps, trainer / bare: {sum(ours) / sum(theirs):.3f}; "
        f"step by step: median {statistics.median(ratios):.3f}, "
        f"quartiles {ratios[STEPS // 4]:.3f} and {ratios[3 * STEPS // 4]:.3f} of {STEPS} steps"
    )


def _trainer(folder: Path) -> Trainer:
    """A whole trainer on prepared text, as `pretrain` builds it."""
    from data_pipeline.common.compose import compose_config
    from data_pipeline.prepare import PrepareConfig, prepare
    from pretraining.build import build, read_inputs
    from pretraining.config import load_config
    from pretraining.parallel.launch import Launch
    from pretraining.parallel.world import start_world
    from pretraining.run.signals import StopRequest

    inputs = [f"corpus.inputs=[{sysconfig.get_path('stdlib')}/*.py]", f"output={folder / 'data'}"]
    prepare(compose_config("prepare", [*inputs, "tokenizer.vocab_size=2048"], PrepareConfig))
    config = load_config(
        [
            *MODEL,
            f"data.path={folder / 'data'}",
            "train.steps=1000000",
            "train.eval_every=0",
            "train.checkpoint_every=0",
            "tracking.wandb=offline",
            "scheduler=constant",
        ]
    )
    (folder / "run").mkdir()
    return build(config, read_inputs(config), start_world(Launch()), folder / "run", StopRequest())


def _times(trainer: Trainer) -> Iterator[tuple[float, float]]:
    """-> seconds of each step, by the trainer and bare; which of them goes first alternates."""
    feeds = trainer.feeds
    steps = gather_steps(
        feeds.training(trainer.position), feeds.share.micro_batches, trainer.reported, trainer.world, trainer.stop
    )
    assert isinstance(trainer.engine, EngineBase)
    bare = _bare_step(cast(DecoderWithHead, trainer.engine.module.model))
    batch = next(steps).micro_batches[0].arrays
    for number in range(WARM_UP + STEPS):
        if number % 2:
            theirs = _seconds(bare, batch)
        began = time.perf_counter()
        data = next(steps)
        trainer.train_step(data, began)
        ours = time.perf_counter() - began
        batch = data.micro_batches[0].arrays
        if not number % 2:
            theirs = _seconds(bare, batch)
        if number >= WARM_UP:
            yield ours, theirs


def _bare_step(model: DecoderWithHead) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step(batch: Batch) -> None:
        hidden = model(batch["tokens"], batch["positions"], batch["documents"])
        (model.head(hidden, batch["labels"]) / (batch["labels"] != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[dict[str, torch.Tensor]], None], batch: dict[str, torch.Tensor]) -> float:
    began = time.perf_counter()
    step(batch)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

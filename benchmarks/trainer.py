"""What the trainer costs beside a bare loop: same model, same batches; forward, backward, optimizer, no data loading.

    python -m benchmarks.trainer        (or make bench)

Both loops run in turn within one process, some steps at a time, so that the machine's noise meets both alike.
"""

from __future__ import annotations

import statistics
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

STEPS, ROUNDS = 8, 10
MODEL = ["model=gpt_debug", "model.hidden_size=128", "model.num_layers=4", "model.max_seq_len=128",
         "train.global_batch_size=8", "train.micro_batch_size=8"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = _trainer(Path(folder))
        bare = _bare_loop(trainer, batch)
        ratios, times = [], []
        for turn in range(ROUNDS + 1):
            ours, theirs = _time(lambda: _train(trainer)), _time(bare)
            if turn:  # the first warms up
                ratios.append(ours / theirs)
                times.append((ours, theirs))
        tokens = STEPS * batch["tokens"].numel()
        trainer_rate, bare_rate = (tokens / statistics.median(column) for column in zip(*times, strict=True))
        print(f"trainer {trainer_rate:,.0f} tokens/s, bare loop {bare_rate:,.0f} tokens/s; time trainer / bare: median "
              f"{statistics.median(ratios):.3f}, min {min(ratios):.3f}, max {max(ratios):.3f} of {ROUNDS} rounds")


def _trainer(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A whole trainer on prepared text, as `pretrain` builds it, and one batch of it."""
    from data_pipeline.config import compose_config
    from data_pipeline.prepare import PrepareConfig, prepare
    from pretraining.config import load_config
    from pretraining.faults import StopRequest
    from pretraining.parallel.launch import Launch, start_world
    from pretraining.train import Inputs, build

    inputs = [f"corpus.inputs=[{sysconfig.get_path('stdlib')}/*.py]", f"output={folder / 'data'}"]
    prepare(compose_config("prepare", [*inputs, "tokenizer.vocab_size=2048"], PrepareConfig))
    config = load_config([*MODEL, f"data.path={folder / 'data'}", "train.steps=1000000", "train.eval_every=0",
                          "train.checkpoint_every=0", "tracking.wandb=offline", "scheduler=constant"])
    (folder / "run").mkdir()
    trainer = build(config, Inputs(config), start_world(Launch()), folder / "run", StopRequest())
    trainer.steps = trainer._steps(trainer.feed(trainer.position))
    return trainer, next(trainer.steps).micro_batches[0].arrays


def _train(trainer: Any) -> None:
    """The body of Trainer.fit."""
    pending = None
    for _ in range(STEPS):
        began = time.perf_counter()
        data = next(trainer.steps)
        numbers, lr = trainer._train_step(data)
        trainer._report(pending)
        pending = trainer._pending(data, numbers, lr, time.perf_counter() - began)
    trainer._report(pending)


def _bare_loop(trainer: Any, batch: dict[str, Any]) -> Any:
    model = trainer.engine.module.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    count = int((batch["labels"] != -100).sum())

    def loop() -> None:
        for _ in range(STEPS):
            hidden = model(batch["tokens"], batch["positions"], batch["documents"])
            (model.head(hidden, batch["labels"]) / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return loop


def _time(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""Runs whose numbers are pinned: `pretrain` in this process, on one CPU thread, told from outside by overrides."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pretraining.train import pretrain
from tests.golden.corpora import prepare_images, prepare_text

SHAPE = (
    "model.hidden_size=32",
    "model.num_heads=2",
    "train.log_every=1",
    "train.checkpoint_every=0",
    "train.seed=1",
    "data.num_workers=0",
    "data.window_blocks=2",
    "tracking.wandb=disabled",
    "scheduler=constant",
    "scheduler.warmup_steps=1",
)
TEXT = (*SHAPE, "model.max_seq_len=32", "train.global_batch_size=32", "train.micro_batch_size=16")
IMAGES = (
    *SHAPE,
    "model.image_size=16",
    "model.patch_size=4",
    "train.global_batch_size=64",
    "train.micro_batch_size=32",
)


@dataclass(frozen=True)
class Data:
    """The prepared folders of one session, and where its runs go."""

    text: Path
    images: Path
    runs: Path

    @classmethod
    def make(cls, folder: Path) -> Data:
        return cls(prepare_text(folder), prepare_images(folder), folder / "runs")


@dataclass(frozen=True)
class Case:
    """A run: its name in the file of values, the kind of its data, and its overrides."""

    name: str
    kind: str
    overrides: tuple[str, ...]

    def run(self, data: Data, *more: str) -> list[dict[str, Any]]:
        """-> the lines of metrics.jsonl."""
        path, common = (data.text, TEXT) if self.kind == "text" else (data.images, IMAGES)
        data.runs.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data.runs) as run_dir, _one_cpu_thread(), _signal_handlers_kept():
            code = pretrain([*common, *self.overrides, f"data.path={path}", f"run_dir={run_dir}", *more])
            assert code == 0, f"pretrain ended with {code}"
            return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def _one_cpu_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch("torch.cuda.is_available", return_value=False):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """`pretrain` installs its own, and a test run should still end by Ctrl-C."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

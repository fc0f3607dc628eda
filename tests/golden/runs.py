"""Runs whose numbers are pinned: `pretrain` in this process, on one CPU thread, steered by overrides alone."""

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
from tests.golden.corpora import prepare_case, with_similar_words, write_sources

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
    """The raw files and the prepared folders of one test run, and where its runs go."""

    sources: Path
    text: Path
    images: Path
    pairs: Path
    similar: Path
    runs: Path

    @classmethod
    def make(cls, folder: Path) -> Data:
        sources = folder / "sources"
        write_sources(sources)
        text, images, pairs = (prepare_case(name, sources, folder / name) for name in ("text", "images", "pairs"))
        return cls(sources, text, images, pairs, with_similar_words(text, folder / "similar"), folder / "runs")

    def overrides(self, kind: str) -> list[str]:
        """What names the prepared data: text, pairs, similar (text with a table of similar words), or a mixture."""
        if kind == "mixture":
            return ["data=mixture", f"data.sources={{a: {self.text}, b: {self.text}}}", "data.shares={a: 3, b: 1}"]
        return [f"data.path={ {'text': self.text, 'pairs': self.pairs, 'similar': self.similar}[kind] }"]


@dataclass(frozen=True)
class Case:
    """A run: its name in the file of values, the kind of its data, and its overrides."""

    name: str
    kind: str
    overrides: tuple[str, ...]

    def command_line(self, data: Data, run_dir: str) -> list[str]:
        """The overrides of the whole run."""
        path, common = (data.text, TEXT) if self.kind == "text" else (data.images, IMAGES)
        return [*common, *self.overrides, f"data.path={path}", f"run_dir={run_dir}"]

    def run(self, data: Data) -> list[dict[str, Any]]:
        """-> the lines of metrics.jsonl."""
        data.runs.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data.runs) as run_dir:
            with _one_cpu_thread(), _signal_handlers_kept():
                code = pretrain(self.command_line(data, run_dir))
            assert code == 0, f"pretrain ended with {code}"
            return read_metrics(run_dir)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
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

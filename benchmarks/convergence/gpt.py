"""GPT's reference: random crops of one long text, as karpathy/nanoGPT trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

from benchmarks.convergence.prepared import read_documents

Batch = dict[str, Tensor]
NO_LABEL = -100
EVALUATED = 64  # rows


class Reference:
    """Every document is framed by its begin and end marks."""

    def __init__(self, data: Path, start: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(start)
        self.frame = np.array([tokenizer.bos_token_id]), np.array([tokenizer.eos_token_id])
        self.length = AutoConfig.from_pretrained(start).n_positions
        self.data = data

    def load(self, folder: Path) -> GPT2LMHeadModel:
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)

    def training_batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        text = np.concatenate(self._documents("train"))
        while True:
            starts = rng.integers(0, len(text) - self.length, size)
            rows = np.stack([text[start : start + self.length + 1] for start in starts])
            yield _batch(rows[:, :-1], rows[:, 1:])

    def validation_batches(self) -> Iterator[Batch]:
        """Each document in consecutive rows; every token but the first is predicted once."""
        rows = [
            (document[start : start + self.length], document[start + 1 : start + self.length + 1])
            for document in self._documents("valid")
            for start in range(0, len(document) - 1, self.length)
        ]
        for first in range(0, len(rows), EVALUATED):
            some = rows[first : first + EVALUATED]
            tokens = np.zeros((len(some), self.length), np.int64)
            labels = np.full_like(tokens, NO_LABEL)
            for number, (read, predicted) in enumerate(some):
                tokens[number, : len(predicted)] = read[: len(predicted)]
                labels[number, : len(predicted)] = predicted
            yield _batch(tokens, labels)

    def loss(self, model: GPT2LMHeadModel, batch: Batch) -> tuple[Tensor, int]:
        logits = model(batch["tokens"]).logits
        total = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum", ignore_index=NO_LABEL)
        return total, int((batch["labels"] != NO_LABEL).sum())

    def _documents(self, split: str) -> list[np.ndarray]:
        before, after = self.frame
        return [np.concatenate([before, document, after]) for document in read_documents(self.data, split)]


def _batch(tokens: np.ndarray, labels: np.ndarray) -> Batch:
    return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

"""BERT's reference: random crops of documents, masked as Devlin et al. 2018 (section 3.1, appendix A.1) say, without
pairs (Liu et al. 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

from benchmarks.convergence.prepared import read_documents

Batch = dict[str, Tensor]
NO_LABEL = -100
EVALUATED = 32  # rows
MASK_RATE = 0.15


class Reference:
    def __init__(self, data: Path, start: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(start)
        self.length = AutoConfig.from_pretrained(start).max_position_embeddings
        specials = set(self.tokenizer.all_special_ids)
        self.words = np.array([i for i in range(len(self.tokenizer)) if i not in specials])
        self.data = data

    def load(self, folder: Path) -> BertForMaskedLM:
        return BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)

    def training_batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        room = self.length - 2
        documents = [d for d in read_documents(self.data, "train") if len(d) >= room]
        crops = np.array([len(d) - room + 1 for d in documents])
        while True:
            chosen = rng.choice(len(documents), size, p=crops / crops.sum())
            starts = rng.integers(0, crops[chosen])
            rows = [documents[d][start : start + room] for d, start in zip(chosen, starts, strict=True)]
            yield self._masked(rows, rng)

    def validation_batches(self) -> Iterator[Batch]:
        """Each document in consecutive rows, masked by a generator of their own."""
        rng, room = np.random.default_rng(0), self.length - 2
        rows = [d[start : start + room] for d in read_documents(self.data, "valid") for start in range(0, len(d), room)]
        for first in range(0, len(rows), EVALUATED):
            yield self._masked(rows[first : first + EVALUATED], rng)

    def loss(self, model: BertForMaskedLM, batch: Batch) -> tuple[Tensor, int]:
        hidden = model.bert(batch["tokens"], attention_mask=batch["attended"]).last_hidden_state
        predicted = batch["labels"] != NO_LABEL
        logits = model.cls(hidden[predicted])
        return F.cross_entropy(logits, batch["labels"][predicted], reduction="sum"), int(predicted.sum())

    def _masked(self, rows: list[np.ndarray], rng: np.random.Generator) -> Batch:
        """[cls] row [sep], padded; of the tokens of text 15% are predicted: 80% of them hidden behind the mask, 10%
        behind any word, 10% shown."""
        tokens = np.full((len(rows), self.length), self.tokenizer.pad_token_id)
        attended = np.zeros_like(tokens)
        labels = np.full_like(tokens, NO_LABEL)
        for number, row in enumerate(rows):
            framed = np.array([self.tokenizer.cls_token_id, *row, self.tokenizer.sep_token_id])
            count = max(1, round(MASK_RATE * len(framed)))
            places = rng.permutation(len(row))[:count] + 1
            labels[number, places] = framed[places]
            draws = rng.random(len(places))
            framed[places[draws < 0.8]] = self.tokenizer.mask_token_id
            others = places[draws >= 0.9]
            framed[others] = rng.choice(self.words, len(others))
            tokens[number, : len(framed)] = framed
            attended[number, : len(framed)] = 1
        arrays = {"tokens": tokens, "attended": attended, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

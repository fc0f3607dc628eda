"""T5's reference: documents joined, cut, and corrupted by spans (Raffel et al. 2019, sections 2.1 and 3.1.4;
google-research/text-to-text-transfer-transformer, preprocessors.py, span_corruption)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

from benchmarks.convergence.prepared import read_documents

Batch = dict[str, Tensor]
NO_LABEL = -100
EVALUATED = 32  # rows
NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0


class Reference:
    def __init__(self, data: Path, start: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(start)
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(100)]
        length = AutoConfig.from_pretrained(start).n_positions
        self.tokens = max(n for n in range(2, 2 * length) if inputs_length(n) <= length)
        self.data = data

    def load(self, folder: Path) -> T5ForConditionalGeneration:
        return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def training_batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        documents = read_documents(self.data, "train")
        while True:
            chunks = self._chunks(documents, rng)
            for first in range(0, len(chunks) - size + 1, size):
                yield self._corrupted(chunks[first : first + size], rng)

    def validation_batches(self) -> Iterator[Batch]:
        rng = np.random.default_rng(0)
        chunks = self._chunks(read_documents(self.data, "valid"), rng)
        for first in range(0, len(chunks), EVALUATED):
            yield self._corrupted(chunks[first : first + EVALUATED], rng)

    def loss(self, model: T5ForConditionalGeneration, batch: Batch) -> tuple[Tensor, int]:
        logits = model(input_ids=batch["inputs"], labels=batch["labels"]).logits
        total = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return total, batch["labels"].numel()

    def _chunks(self, documents: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """The documents in a random order, joined without a mark, cut and shuffled -> int [chunks, tokens]. The rest
        at the end is left out."""
        text = np.concatenate([documents[d] for d in rng.permutation(len(documents))])
        chunks = text[: len(text) // self.tokens * self.tokens].reshape(-1, self.tokens)
        return chunks[rng.permutation(len(chunks))]

    def _corrupted(self, chunks: np.ndarray, rng: np.random.Generator) -> Batch:
        """All rows have as many tokens of noise in as many spans: nothing is padded."""
        noise = [noise_mask(len(chunk), rng) for chunk in chunks]
        inputs = [self._replaced(chunk, mask) for chunk, mask in zip(chunks, noise, strict=True)]
        labels = [self._replaced(chunk, ~mask) for chunk, mask in zip(chunks, noise, strict=True)]
        return {"inputs": torch.from_numpy(np.stack(inputs)), "labels": torch.from_numpy(np.stack(labels))}

    def _replaced(self, tokens: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Each run of taken tokens becomes the next sentinel; an end mark follows."""
        first = taken & ~np.concatenate([[False], taken[:-1]])
        marked = np.where(first, np.array(self.sentinels)[np.cumsum(first) - 1], tokens)
        return np.append(marked[first | ~taken], self.eos)


def noise_mask(length: int, rng: np.random.Generator) -> np.ndarray:
    """-> bool [length]: spans of text and of noise in turn, text first, each cut at random into as many."""
    noise, spans = noise_counts(length)
    runs = np.stack([_random_lengths(length - noise, spans, rng), _random_lengths(noise, spans, rng)], axis=1)
    return np.repeat(np.tile([False, True], spans), runs.reshape(-1))


def noise_counts(length: int) -> tuple[int, int]:
    """-> (tokens of noise, spans)."""
    noise = min(max(round(length * NOISE_DENSITY), 1), length - 1)
    return noise, max(round(noise / MEAN_SPAN), 1)


def inputs_length(tokens: int) -> int:
    """What is left of so many tokens: sentinels for spans, and an end mark."""
    noise, spans = noise_counts(tokens)
    return tokens - noise + spans + 1


def _random_lengths(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """-> int [parts], at least 1 each, their sum `total`; every way is equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))

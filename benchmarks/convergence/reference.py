"""The plain loop that the framework is compared with, and the evaluator of both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from benchmarks.convergence.recipes import Recipe

Batch = dict[str, Tensor]


class Family(Protocol):
    """A family's model in transformers, and its batches from prepared data."""

    def load(self, folder: Path) -> PreTrainedModel: ...

    def training_batches(self, rng: np.random.Generator, size: int) -> Iterator[Batch]:
        """Without end."""
        ...

    def validation_batches(self) -> Iterator[Batch]:
        """The held-out data, once, the same at each call."""
        ...

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """-> (sum of the losses, how many)."""
        ...


def open_family(name: str, data: Path, start: Path) -> Family:
    """start: a Hugging Face folder of the run, with its config.json and tokenizer."""
    logging.set_verbosity_error()  # of an unused pair head, and of rows without an attention mask
    logging.disable_progress_bar()
    return import_module(f"benchmarks.convergence.{name}").Reference(data, start)


def train(recipe: Recipe, data: Path, start: Path, seed: int, output: Path) -> None:
    """Trains the model in `start` and writes it to `output`."""
    torch.manual_seed(seed)
    family = open_family(recipe.family, data, start)
    model = family.load(start).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps
    )
    batches = family.training_batches(np.random.default_rng(seed), recipe.batch)
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        total, count = family.loss(model, next(batches))
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(output)


@torch.no_grad()
def evaluate(name: str, data: Path, start: Path, folder: Path) -> float:
    """The mean loss of the Hugging Face model in `folder` over the held-out data."""
    family = open_family(name, data, start)
    model = family.load(folder).eval()
    losses, counts = zip(*(family.loss(model, batch) for batch in family.validation_batches()), strict=True)
    return float(sum(losses)) / sum(counts)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of step 1, 2, ...: straight up to recipe.lr, then half a cosine down to recipe.final_lr."""
    if step <= recipe.warmup_steps:
        return recipe.lr * step / recipe.warmup_steps
    progress = (step - 1 - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.final_lr + (recipe.lr - recipe.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """No decay on vectors (biases, norms, a class token) and on T5's relative biases."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_vector = parameter.numel() == parameter.shape[-1] or "bias" in name
        (others if is_vector else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

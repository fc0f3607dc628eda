"""The only inner modules that golden tests import: where these move, this file follows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data_pipeline.loader import RankSlice, micro_batches
from data_pipeline.tokenizers.similar import encode_similar
from data_pipeline.tokenizers.tokenizer import Tokenizer
from pretraining.config import load_config
from pretraining.models.registry import build_model
from pretraining.objectives.base import SampleSpec
from pretraining.objectives.registry import build_objective
from pretraining.parallel.layers import PlainLayers
from pretraining.run import throughput
from pretraining.run.prepared import Prepared
from tests.building import vocabulary_for


def flops_per_unit(overrides: Sequence[str], outputs: int) -> float:
    """Forward and backward of one token, or of one image, of the model and objective that these overrides choose.
    outputs: entries of the vocabulary, or classes."""
    config = load_config([*overrides, "data.path=none"])
    with torch.device("meta"):
        model: Any = build_model(config.model, vocabulary_for(config.model, outputs), PlainLayers())
    if config.data_kind == "text":
        return float(model.flops_per_token(config.seq_len))
    spec = SampleSpec(grid=config.grid, classes=("class",) * outputs)
    return build_objective(config.objective, spec).flops_per_unit(model)


def samples(overrides: Sequence[str], batches: int, size: int) -> dict[str, list[int]]:
    """-> batch_hash and tokens of each of the first batches, as the loader of a run makes them."""
    config = load_config(overrides)
    data = Prepared(config)
    objective = build_objective(config.objective, data.spec)
    source = data.source("train", objective.packing_of, config.train.seed)
    made = list(islice(micro_batches(source, objective, RankSlice(size, size), source.start()), batches))
    return {
        "batch_hash": [batch.content_hash for batch, _ in made],
        "tokens": [batch.tokens for batch, _ in made],
    }


def similar_table(tokenizer: Path) -> bytes:
    """A similar.npz in which each piece of a prepared folder's tokenizer has the three before it."""
    pieces = [(i,) for i in sorted(Tokenizer.load(tokenizer).pieces.values()) if i > 260]
    return encode_similar({piece: pieces[n - 3 : n] for n, piece in enumerate(pieces) if n > 2})


def schedule_ratio(overrides: Sequence[str], step: int, steps: int) -> float:
    """The learning rate of update `step` of `steps` as a share of its peak."""
    return load_config([*overrides, "data.path=none"]).scheduler.ratio(step, steps)


def utilization(flops: float, seconds: float, ranks: int, device: str) -> dict[str, float]:
    """flops: of one step over all ranks; device: its name as CUDA gives it -> tflops and mfu, as metrics.jsonl has
    them."""
    return throughput.utilization(flops, seconds, ranks, throughput.device_peak(device))

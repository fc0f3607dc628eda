"""The only inner modules that golden tests import: where these move, this file follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pretraining.config import load_config
from pretraining.parallel.layers import PlainLayers
from pretraining.run import throughput


def flops_per_unit(overrides: Sequence[str], outputs: int) -> float:
    """Forward and backward of one token, or of one image, of the model and objective that these overrides choose.
    outputs: entries of the vocabulary, or classes."""
    config = load_config([*overrides, "data.path=none"])
    with torch.device("meta"):
        model = config.model.build(outputs, PlainLayers())
    if config.data_kind == "text":
        return float(model.flops_per_token(config.sample_shape))
    objective = config.objective.build(("class",) * outputs, config.sample_shape)
    return float(objective.flops_per_image(model))


def utilization(flops: float, seconds: float, ranks: int, device: str) -> dict[str, float]:
    """flops: of one step over all ranks; device: its name as CUDA gives it -> tflops and mfu, as metrics.jsonl has
    them."""
    return throughput.utilization(flops, seconds, ranks, throughput.device_peak(device))

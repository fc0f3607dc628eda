"""The proof of an export: one input through our model and the Hugging Face one, and how far the outputs differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretraining.models.base import Model
from pretraining.models.huggingface_map import HuggingFaceFamily, Inputs, Values

TOLERANCE = 1e-4  # largest absolute difference of any output
Family = HuggingFaceFamily[Any]


def probes(family: Family, model: Model, outputs: int) -> list[Inputs]:
    """The same for the same shapes; outputs: the size of the vocabulary or the number of classes."""
    return family.probe_inputs(model, np.random.default_rng(outputs))


@torch.no_grad()
def our_outputs(family: Family, model: Model, examples: Sequence[Inputs], values: Values) -> list[Inputs]:
    """Without packing: no document mask, no padding. values: config.json."""
    model.eval()
    return [family.probe_outputs(model, inputs, values) for inputs in examples]


@torch.no_grad()
def their_outputs(folder: Path, architecture: str, examples: Sequence[Inputs], names: Sequence[str]) -> list[Inputs]:
    """transformers' outputs of these names, from the folder as it lies on disk, in fp32 on the CPU."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = (
        getattr(transformers, architecture)
        .from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
        .eval()
    )
    return [{name: getattr(made, name) for name in names} for made in (model(**inputs) for inputs in examples)]


def largest_difference(ours: Sequence[Inputs], theirs: Sequence[Inputs]) -> float:
    """max |a - b| over all outputs; infinite where one is not a number."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            assert a[name].shape == b[name].shape, f"{name}: {tuple(a[name].shape)} and {tuple(b[name].shape)}"
            difference = float((a[name] - b[name]).abs().max())
            worst = max(worst, difference if difference == difference else float("inf"))  # NaN != NaN
    return worst

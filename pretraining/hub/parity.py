"""The proof of an export: one input through our model and the Hugging Face one, and how far the outputs differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pretraining.models.base import Model
from pretraining.models.huggingface_map import HuggingFaceFamily, Inputs, Values

TOLERANCE = 1e-4  # largest absolute difference of any output
IDS = "input_ids"  # the ending of what a text model reads
LOGITS = ("prediction_logits", "logits")  # over the vocabulary, where they are [batch, length, vocabulary]
Family = HuggingFaceFamily[Any]


Ids = npt.NDArray[np.int64]


def probes(family: Family, model: Model, outputs: int, used: Ids | None = None) -> list[Inputs]:
    """The same for the same shapes; outputs: the size of the vocabulary or the number of classes. used: as for
    our_outputs; the ids of probes are exported ones."""
    made = family.probe_inputs(model, np.random.default_rng(outputs))
    if used is None:
        return made
    return [{name: t % len(used) if name.endswith(IDS) else t for name, t in inputs.items()} for inputs in made]


@torch.no_grad()
def our_outputs(
    family: Family, model: Model, examples: Sequence[Inputs], values: Values, used: Ids | None = None
) -> list[Inputs]:
    """Without packing: no document mask, no padding. values: config.json. used: ours of the exported ids, in their
    order; None where both are the same."""
    model.eval()
    if used is None:
        return [family.probe_outputs(model, inputs, values) for inputs in examples]
    ids = torch.from_numpy(used)
    found = []
    for inputs in examples:
        own = {name: ids[t] if name.endswith(IDS) else t for name, t in inputs.items()}
        outputs = family.probe_outputs(model, own, values)
        found.append({name: t[..., ids] if name in LOGITS and t.ndim == 3 else t for name, t in outputs.items()})
    return found


@torch.no_grad()
def their_outputs(folder: Path, architecture: str, examples: Sequence[Inputs], names: Sequence[str]) -> list[Inputs]:
    """transformers' outputs of these names, from the folder as it lies on disk, in fp32 on the CPU."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # It warns of every T5 whose head is its own, whatever config.json says; what it computes is compared anyway.
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    model = (
        getattr(transformers, architecture)
        .from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
        .eval()
    )
    transformers.utils.logging.set_verbosity(verbosity)
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

"""The proof of an export: one input through our model and the Hugging Face one, and how far the outputs differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4
ROW_LENGTHS = (1.0, 0.37, 0.1)  # of the longest sequence: rows without padding

Inputs = dict[str, Tensor]  # under the names that transformers' forward takes


@dataclass(frozen=True)
class Counterpart:
    """How a family leaves for transformers.

    module: where it states huggingface_config, weight_map and from_huggingface_config.
    architectures: the transformers classes that config.json may name.
    inputs: (config, vocabulary or classes, generator) -> probes. outputs: our model's, named as transformers' are, from
    (model, a probe, config.json).
    """

    module: str
    architectures: tuple[str, ...]
    inputs: Callable[[Any, int, np.random.Generator], list[Inputs]]
    outputs: Callable[[Any, Inputs, dict[str, Any]], Inputs]

    def load(self) -> Any:
        return import_module(self.module)


def probes(counterpart: Counterpart, config: Any, vocab_size: int) -> list[Inputs]:
    """The same for the same shapes."""
    return counterpart.inputs(config, vocab_size, np.random.default_rng(vocab_size))


@torch.no_grad()
def our_outputs(counterpart: Counterpart, model: Any, examples: list[Inputs], values: dict[str, Any]) -> list[Inputs]:
    """Without packing: no document mask, no padding. values: config.json."""
    model.eval()
    return [counterpart.outputs(model, inputs, values) for inputs in examples]


@torch.no_grad()
def their_outputs(folder: Path, architecture: str, examples: list[Inputs], names: list[str]) -> list[Inputs]:
    """transformers' own, of the folder as it lies on disk, fp32 on the CPU."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = (
        getattr(transformers, architecture)
        .from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
        )
        .eval()
    )
    found = []
    for inputs in examples:
        made = model(**inputs)
        found.append({name: getattr(made, name) for name in names})
    return found


def largest_difference(ours: list[Inputs], theirs: list[Inputs]) -> float:
    """max |a - b| over all outputs; infinite where one is not a number."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            assert a[name].shape == b[name].shape, f"{name}: {tuple(a[name].shape)} and {tuple(b[name].shape)}"
            difference = float((a[name] - b[name]).abs().max())
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _rows(length: int, vocab_size: int, rng: np.random.Generator) -> list[Tensor]:
    sizes = [max(1, round(length * share)) for share in ROW_LENGTHS]
    return [torch.from_numpy(rng.integers(0, vocab_size, (1, size))) for size in sizes]


def _token_inputs(config: Any, vocab_size: int, rng: np.random.Generator) -> list[Inputs]:
    return [{"input_ids": row} for row in _rows(config.max_seq_len, vocab_size, rng)]


def _segment_inputs(config: Any, vocab_size: int, rng: np.random.Generator) -> list[Inputs]:
    rows = _rows(config.max_seq_len, vocab_size, rng)
    return [
        {"input_ids": row, "token_type_ids": (torch.arange(row.shape[1]) > row.shape[1] // 2).long()[None]}
        for row in rows
    ]


def _pair_inputs(config: Any, vocab_size: int, rng: np.random.Generator) -> list[Inputs]:
    targets = _rows(max(8, config.max_seq_len // 4), vocab_size, rng)
    return [
        {"input_ids": row, "decoder_input_ids": target}
        for row, target in zip(_rows(config.max_seq_len, vocab_size, rng), targets, strict=True)
    ]


def _image_inputs(config: Any, vocab_size: int, rng: np.random.Generator) -> list[Inputs]:
    images = rng.standard_normal((2, 3, config.image_size, config.image_size)).astype(np.float32)
    return [{"pixel_values": torch.from_numpy(images)}]


def _masked_image_inputs(config: Any, num_classes: int, rng: np.random.Generator) -> list[Inputs]:
    (inputs,) = _image_inputs(config, num_classes, rng)
    return [{**inputs, "noise": torch.from_numpy(rng.random((2, config.grid.patches), dtype=np.float32))}]


def _gpt_outputs(model: Any, inputs: Inputs, values: dict[str, Any]) -> Inputs:
    return {"logits": model.head.logits(model(inputs["input_ids"]))}


def _t5_outputs(model: Any, inputs: Inputs, values: dict[str, Any]) -> Inputs:
    return {"logits": model.head.logits(model(inputs["input_ids"], inputs["decoder_input_ids"]))}


def _bert_outputs(model: Any, inputs: Inputs, values: dict[str, Any]) -> Inputs:
    tokens = inputs["input_ids"]
    hidden = model(tokens, inputs["token_type_ids"])
    everywhere = torch.arange(tokens.shape[1]).expand_as(tokens)
    return {
        "prediction_logits": model.head.logits(hidden, everywhere),
        "seq_relationship_logits": model.pair_head(hidden),
    }


def _vit_outputs(model: Any, inputs: Inputs, values: dict[str, Any]) -> Inputs:
    return {"logits": model.head(model(inputs["pixel_values"]))}


def _mae_outputs(model: Any, inputs: Inputs, values: dict[str, Any]) -> Inputs:
    """transformers sees the patches of least noise and orders a patch's pixels with the channel last."""
    kept = int(inputs["noise"].shape[1] * (1 - values["mask_ratio"]))
    pixels = model(inputs["pixel_values"], inputs["noise"].argsort(1)[:, :kept])
    return {"logits": pixels.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)}


COUNTERPARTS = {
    "gpt": Counterpart(
        "pretraining.models.gpt.huggingface", ("GPT2LMHeadModel", "LlamaForCausalLM"), _token_inputs, _gpt_outputs
    ),
    "t5": Counterpart("pretraining.models.t5.huggingface", ("T5ForConditionalGeneration",), _pair_inputs, _t5_outputs),
    "bert": Counterpart("pretraining.models.bert.model", ("BertForPreTraining",), _segment_inputs, _bert_outputs),
    "vit": Counterpart("pretraining.models.vit.model", ("ViTForImageClassification",), _image_inputs, _vit_outputs),
    "mae": Counterpart("pretraining.models.mae.model", ("ViTMAEForPreTraining",), _masked_image_inputs, _mae_outputs),
}

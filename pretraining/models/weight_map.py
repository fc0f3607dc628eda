"""How a family maps its weights to those of its Hugging Face counterpart: one entry per tensor, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.models.vocabulary import padded_vocabulary

Change = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class WeightMap:
    """The tensor `ours` is called `theirs` in the Hugging Face model: export(our tensor) is theirs, restore(their
    tensor) is ours.

    by_token: its rows are the vocabulary's ids. fixed_by: the option under which `ours` is no parameter but has values
    that never change. tiled_from: theirs may have fewer rows, of which those from this one on are repeated: positions
    of a model of shorter sequences.
    """

    ours: str
    theirs: str
    export: Change = same
    restore: Change = same
    by_token: bool = False
    fixed_by: str = ""
    tiled_from: int | None = None


def transposed(ours: str, theirs: str) -> WeightMap:
    """For Hugging Face's Conv1D, whose weight is [in, out]."""
    return WeightMap(ours, theirs, lambda t: t.T.contiguous(), lambda t: t.T.contiguous())


def vocabulary(ours: str, theirs: str, vocab_size: int) -> WeightMap:
    """A table of [padded vocabulary, ...]: the padding is cut off, and restored as zeros."""

    def pad(tensor: Tensor) -> Tensor:
        padded = tensor.new_zeros(padded_vocabulary(vocab_size), *tensor.shape[1:])
        padded[:vocab_size] = tensor
        return padded

    return WeightMap(ours, theirs, lambda t: t[:vocab_size], pad, by_token=True)


def tiled(ours: str, theirs: str, rows: int, first: int) -> WeightMap:
    """A table of `rows` positions, the first of which is row `first`; a shorter one is repeated as often as it takes
    (Beltagy et al. 2020, "Longformer", section 5)."""

    def restore(tensor: Tensor) -> Tensor:
        body = tensor[first:]
        times = -(-(rows - first) // len(body))
        return torch.cat([tensor[:first], body.repeat(times, *(1,) * (tensor.ndim - 1))])[:rows]

    return WeightMap(ours, theirs, restore=restore, tiled_from=first)


def with_parts(ours: str, theirs: str, parts: Iterable[str] = ("weight", "bias")) -> list[WeightMap]:
    """A module's weight and bias, each as it is."""
    return [WeightMap(f"{ours}.{part}", f"{theirs}.{part}") for part in parts]


def with_and_without(name: str, *bases: str) -> list[str]:
    """A tensor's name in the folder of a model with heads, and in that of the base model alone, whose own name is left
    out there: bert.encoder.layer.0... and encoder.layer.0..."""
    base, _, rest = name.partition(".")
    return [name, rest] if base in bases else [name]

"""How a model file states its Hugging Face counterpart: one entry per tensor, both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pretraining.models.base import padded_vocabulary

Change = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class WeightMap:
    """`ours` is `theirs` in the Hugging Face model: export(our tensor) is theirs, restore(their tensor) ours.

    by_token: its rows stand for the ids of the vocabulary.
    """

    ours: str
    theirs: str
    export: Change = same
    restore: Change = same
    by_token: bool = False


def transposed(ours: str, theirs: str) -> WeightMap:
    """For Hugging Face's Conv1D, whose weight is [in, out]."""
    return WeightMap(ours, theirs, lambda t: t.T.contiguous(), lambda t: t.T.contiguous())


def vocabulary(ours: str, theirs: str, vocab_size: int) -> WeightMap:
    """A table of [padded vocabulary, ...]: the padding is cut off, and comes back as zeros."""

    def pad(tensor: Tensor) -> Tensor:
        padded = tensor.new_zeros(padded_vocabulary(vocab_size), *tensor.shape[1:])
        padded[:vocab_size] = tensor
        return padded

    return WeightMap(ours, theirs, lambda t: t[:vocab_size], pad, by_token=True)

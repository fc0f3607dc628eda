"""Rows of a vocabulary that a published model lacks: the run has another tokenizer than the model it starts from."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from data_pipeline.tokenizers.tokenizer import Tokenizer

Means = Mapping[int, list[int]]  # our id -> rows of the folder's tables


def old_pieces(tokenizer: Tokenizer, theirs: Tokenizer, their_size: int, known: Collection[int]) -> Means:
    """The pieces that the folder's tokenizer splits the text of each of our ids into, but for those that are `known`
    there. None for what stands for no text of its own, such as a single byte, or what it has no pieces for.

    their_size: rows that the folder's tables have.
    """
    found: dict[int, list[int]] = {}
    for i, spelled in enumerate(tokenizer.backend.token_bytes):
        if i in known or not tokenizer.is_text[i]:
            continue
        try:
            ids = theirs.encode(spelled.decode())
        except UnicodeDecodeError:  # a part of a character
            continue
        pieces = [piece for piece in ids if piece != theirs.unk and piece < their_size]
        if pieces:
            found[i] = pieces
    return found


def fill_means(means: Means, found: Tensor, parameter: Tensor, first: int) -> None:
    """found: the folder's table, [their vocabulary, ...]. parameter: our rows from `first` on, overwritten where they
    are among `means` (Hewitt 2021; Gee et al. 2022, "Fast Vocabulary Transfer", section 3)."""
    for i, pieces in means.items():
        if first <= i < first + len(parameter):
            parameter[i - first] = found[torch.tensor(pieces)].mean(0).to(parameter)

"""Rows of different lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad_to(length: int, rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """-> int64 [rows, length], `fill` after each row. `length` is not that of the longest row: shapes that change
    from batch to batch would make torch compile, and CUDA allocate, again and again."""
    out = np.full((len(rows), length), fill, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out

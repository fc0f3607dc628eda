"""A token as the characters that spell it: bytes, with marks for its begin and end (allenai/bilm-tf, bilm/data.py,
UnicodeCharsVocabulary). Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BOS, EOS, BEGIN, END, PAD = range(256, 261)  # after the bytes: of a document, of a document, of a word, of a word
CHARACTERS = 261


def character_table(spelled: Sequence[bytes], size: int, bos: int, eos: int, width: int) -> npt.NDArray[np.int64]:
    """spelled: id -> what it spells -> int64 [size, width]: begin, bytes, end, padding. What is too long is cut. bos
    and eos have a character of their own; ids that spell nothing have none."""
    table = np.full((size, width), PAD, np.int64)
    for i in range(size):
        text = spelled[i] if i < len(spelled) else b""
        inner = {bos: [BOS], eos: [EOS]}.get(i, list(text[: width - 2]))
        table[i, : len(inner) + 2] = [BEGIN, *inner, END]
    return table

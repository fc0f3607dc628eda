"""Where words begin and end, derived from what each token id spells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A word is a run of these: letters, digits, underscores, the combining marks and joiners inside of it, and the sign
# that a decoder puts for a part of a character. Characters of scripts without spaces are words of their own
# (google-research/bert, tokenization.py: _is_chinese_char; and kana).
_JOINING = re.compile("[\\w\u0300-\u036f\u200c\u200d\ufffd]")
_ALONE = re.compile("[\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")


@dataclass(frozen=True)
class WordPieces:
    """begins, ends: bool [ids]. A word begins with a token where it says so, or where the token before ends one."""

    begins: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.bool_]

    def starts(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """tokens: int [length] -> bool [length], True where a word begins; the first token begins one."""
        starts = self.begins[tokens].copy()
        starts[1:] |= self.ends[tokens[:-1]]
        starts[:1] = True
        return starts


def word_pieces(token_bytes: Sequence[bytes], total_size: int) -> WordPieces:
    """token_bytes: what each id spells, UTF-8 or a part of it. Ids beyond them are special: words of their own."""
    begins, ends = np.ones(total_size, bool), np.ones(total_size, bool)
    for i, spelled in enumerate(token_bytes):
        text = spelled.decode(errors="replace")  # a part of a character, wherever it stands, is taken for a letter
        if text:
            begins[i], ends[i] = not _joins(text[0]), not _joins(text[-1])
    return WordPieces(begins, ends)


def _joins(character: str) -> bool:
    return bool(_JOINING.match(character)) and not _ALONE.match(character)

"""Where sentences start: a rule on punctuation and line ends. Shards store it for objectives that need sentences."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

# A sentence ends after . ! ? where whitespace and more text follow, after their Chinese forms (with closing
# quotes; no space follows there), and after the end of a line with the blank lines that follow. Leading spaces
# belong to the next sentence. There are no classes of non-ASCII characters, so that the pattern serves str and bytes.
_PATTERN = (
    r"[.!?](?=[^\S\n]+\S)"
    r"|(?:。|！|？)+(?:”|’|」|』|）)*(?=[^\S\n]*\S)"
    r"|\n(?:\s*\n)?"
)
_IN_TEXT = re.compile(_PATTERN)
_IN_BYTES = re.compile(_PATTERN.encode())


def find_starts(text: str | bytes, token_ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first token of each sentence, int64 [sentences], sorted, without repeats.

    `token_ends` [tokens] says where each token ends in `text` (characters, or bytes where it is bytes). A
    sentence that would start inside a token starts at the next one. The first starts at token 0.
    """
    matches = _IN_BYTES.finditer(text) if isinstance(text, bytes) else _IN_TEXT.finditer(text)
    ends = np.fromiter((m.end() for m in matches), dtype=np.int64)
    starts = np.searchsorted(token_ends, ends, side="left") + 1  # after the token that contains the end
    starts = np.unique(np.concatenate([[0], starts])).astype(np.int64)
    return starts[starts < len(token_ends)]

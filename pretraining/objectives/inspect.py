"""Token ids as text for people to read: the one way in which samples are written."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from data_pipeline.tokenizers.special_tokens import ALL, shown_sentinel
from data_pipeline.tokenizers.tokenizer import Tokenizer


def decode_with_specials(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`, special ids by their names: [CLS], [MASK], [SENTINEL 0], ..."""
    names = {tokenizer.special_ids[token.role]: token.shown for token in ALL}
    names |= {sentinel: shown_sentinel(n) for n, sentinel in enumerate(tokenizer.sentinels)}
    names |= {i: f"[{name}]" for name, i in tokenizer.languages.items()}
    runs = groupby((int(i) for i in ids), key=names.get)
    return "".join(tokenizer.decode(list(run)) if name is None else name * len(list(run)) for name, run in runs)

"""Token ids as text that a person reads."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from data_pipeline.tokenizers.tokenizer import Tokenizer

SPECIAL = ("pad", "bos", "eos", "unk", "mask", "cls", "sep", "fim_prefix", "fim_middle", "fim_suffix")


def decode_with_specials(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of `ids`, special ids by their names: [CLS], [MASK], ..."""
    names = {getattr(tokenizer, name): f"[{name.upper()}]" for name in SPECIAL}
    names |= {sentinel: f"[SENTINEL {i}]" for i, sentinel in enumerate(tokenizer.sentinels)}
    runs = groupby((int(i) for i in ids), key=names.get)
    return "".join(tokenizer.decode(list(run)) if name is None else name * len(list(run)) for name, run in runs)

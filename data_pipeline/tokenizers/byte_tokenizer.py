"""The tokenizer that needs no training: a token is a byte of UTF-8 (Xue et al. 2021, "ByT5", section 3.1).

Ids are those of transformers' ByT5Tokenizer: pad 0, end 1, unknown 2, byte b at 3 + b, then 125 sentinels, 384 in all.
The paper's models use the last hundred bytes' ids as sentinels; here they have ids of their own.
"""

from __future__ import annotations

import json

from data_pipeline.tokenizers.byte_pieces import byte_alphabet
from data_pipeline.tokenizers.special_tokens import exported_sentinel

_FIRST = ("<pad>", "</s>", "<unk>")
_SENTINELS = 125


def byte_tokenizer_json() -> bytes:
    """A tokenizer.json: byte-level pieces of one byte each, of which none are merged."""
    characters = {byte: character for character, byte in byte_alphabet().items()}
    names = [*_FIRST, *(characters[byte] for byte in range(256)), *map(exported_sentinel, range(_SENTINELS))]
    ids = {name: i for i, name in enumerate(names)}
    special = [*_FIRST, *map(exported_sentinel, range(_SENTINELS))]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    values: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[name], "content": name, **plain, "special": True} for name in special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": [],
        },
    }
    return json.dumps(values).encode()

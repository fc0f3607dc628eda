"""A tokenizer.json whose special tokens no text can become, whatever kind of model it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

Values = dict[str, Any]  # of a tokenizer.json


def protected(data: bytes, ids: Collection[int]) -> bytes:
    """The same tokenizer.json, but in which the pieces `ids` are called what no text spells.

    `encode_special_tokens` alone keeps special tokens from being cut out of a text; the model behind it may still find
    them: a Unigram model has '</s>' among its pieces, a WordPiece model finds '[MASK]' where words are split at
    spaces. The unknown piece keeps its name where a model looks for it by name: unknown text becomes it anyway.
    """
    values = json.loads(data)
    mark = hashlib.sha256(data).hexdigest()  # nobody's text holds its own tokenizer's hash
    model = values["model"]
    names = _names(values, set(ids))
    names.pop(model.get("unk_token"), None)
    hidden = {name: f"\ufdd0{mark}{i}\ufdd0" for name, i in names.items()}  # U+FDD0 is no character at all
    for token in values.get("added_tokens") or []:
        if token["content"] in hidden:
            token.update(content=hidden[token["content"]], special=True)
    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _touched(pair, hidden)]
    return json.dumps(values).encode()


def _names(values: Values, ids: Collection[int]) -> dict[str, int]:
    """Name -> id of the pieces with these ids, and of all that are marked special."""
    vocab = values["model"]["vocab"]
    pieces = {piece[0]: i for i, piece in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    found = {name: i for name, i in pieces.items() if i in ids}
    added = values.get("added_tokens") or []
    return found | {token["content"]: token["id"] for token in added if token["special"] or token["id"] in ids}


def _touched(pair: str | list[str], hidden: Collection[str]) -> bool:
    """Whether a merge makes, or is made of, a hidden piece."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return bool({left, right, left + right} & set(hidden))

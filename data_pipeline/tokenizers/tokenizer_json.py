"""What a tokenizer.json must be like to be used: the same ids for the same text, and few of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import parse_json
from data_pipeline.tokenizers.special_tokens import MAX_VOCABULARY
from data_pipeline.tokenizers.trial import check_trial

_FREE_IDS = 1024  # gaps that any vocabulary may have, besides as many as it has pieces


@functools.lru_cache(maxsize=4)
def check_tokenizer_json(data: bytes) -> None:
    """Raises InputError that says why a tokenizer.json cannot be used."""
    try:
        values = parse_json(data)
    except ValueError as error:
        raise InputError(f"not a Hugging Face tokenizer.json: it is not JSON ({str(error)[:200]})") from error
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict):
        raise InputError("not a Hugging Face tokenizer.json: it has no model")
    if model.get("dropout"):
        raise InputError(
            f"model.dropout={model['dropout']!r} would give a text other tokens each time; make it null in the file"
        )
    _check_ids(_pieces(model.get("vocab")), _added(values.get("added_tokens")))
    check_trial(data)


def _pieces(vocab: object) -> dict[str, int]:
    """Piece -> id."""
    if isinstance(vocab, list) and all(isinstance(entry, list) and entry for entry in vocab):
        vocab = {entry[0]: i for i, entry in enumerate(vocab) if isinstance(entry[0], str)}
    if not isinstance(vocab, dict) or not vocab:
        raise InputError("its model has no vocabulary")
    return vocab


def _added(tokens: object) -> dict[str, int]:
    """Content -> id."""
    entries = tokens if isinstance(tokens, list) else []
    if tokens is not None and entries is not tokens:
        raise InputError("its added_tokens are not a list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise InputError("an added token has no content")
    return {entry["content"]: entry.get("id") for entry in entries}


def _check_ids(pieces: Mapping[str, Any], added: Mapping[str, Any]) -> None:
    both = {**pieces, **added}
    for name, i in both.items():
        if type(i) is not int or not 0 <= i < MAX_VOCABULARY:
            raise InputError(
                f"the piece {name[:50]!r} has the id {str(i)[:30]}; ids are from 0 to {MAX_VOCABULARY - 1}"
            )
    if len(set(pieces.values())) < len(pieces):
        raise InputError("two pieces of its vocabulary have the same id")
    most = 1 + max(both.values())
    if most > 2 * len(both) + _FREE_IDS:
        raise InputError(f"its {len(both)} pieces have ids up to {most - 1}: a model would have a row for each")

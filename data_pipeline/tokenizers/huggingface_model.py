"""A Hugging Face tokenizer.json as a backend of Tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.byte_pieces import byte_pieces
from data_pipeline.tokenizers.native_tokens import known_names
from data_pipeline.tokenizers.protection import protected
from data_pipeline.tokenizers.sentences import find_starts

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceModel:
    """Encodes and decodes with a tokenizer.json; adds no special tokens and reads none from text.

    special_ids: of the pieces that no text becomes, besides those that the file marks special.
    """

    def __init__(self, data: bytes, special_ids: Collection[int] = ()) -> None:
        self.data = data
        self._special_ids = frozenset(special_ids)
        self._tokenizer = _opened(data)
        self.size = 1 + max(self.pieces.values())

    def protect(self, special_ids: Collection[int]) -> HuggingFaceModel:
        """-> the same model, of which no text becomes one of these ids."""
        return HuggingFaceModel(self.data, special_ids)

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        return _opened(protected(self.data, self._special_ids))

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece, special tokens included."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    def special_ids(self, named: Mapping[str, str]) -> dict[str, int]:
        """Role -> id of the special tokens that it has: those `named`, as far as there are such pieces; then added
        tokens marked special and the model's own unknown piece. Only where nothing is marked, a usual name is enough
        (Gemma's vocabulary has '<s>' as a piece of HTML, beside its own special '<bos>')."""
        found = {role: i for role, name in named.items() if (i := self._tokenizer.token_to_id(name)) is not None}
        if (unknown := self._unknown()) is not None:
            found.setdefault("unk", unknown)
        marked = {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        candidates = marked or self.pieces
        for role, names in known_names().items():
            ids = [candidates[name] for name in names if name in candidates]
            if ids:
                found.setdefault(role, ids[0])
        return found

    def _unknown(self) -> int | None:
        model = json.loads(self.data)["model"]
        if model.get("unk_id") is not None:
            return int(model["unk_id"])
        name = model.get("unk_token")
        return None if name is None else self._tokenizer.token_to_id(name)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each piece stands for after another: decoders drop the space of a first piece."""
        # A piece that is a part of a character cannot be decoded by itself: that gives U+FFFD, which has three bytes.
        parts = byte_pieces(json.loads(self.data).get("decoder"), self.pieces)
        if len(parts) == len(self.pieces):
            return [parts.get(i, b"") for i in range(self.size)]
        anchor = next((i for i in range(self.size) if self.decode([i]).isalnum()), None)
        if anchor is None:
            raise InputError("no piece of the tokenizer is a letter or a digit")
        known = len(self.decode([anchor]))
        return [parts[i] if i in parts else self.decode([anchor, i])[known:].encode() for i in range(self.size)]

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [size], True for the ids that stand for text."""
        known = set(self.pieces.values())
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return np.array([i in known and i not in special for i in range(self.size)])

    def encode(self, text: str) -> list[int]:
        return self._encoded(text).ids

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """-> ids, first token of each sentence."""
        encoding = self._encoded(text)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        return encoding.ids, find_starts(text, np.maximum.accumulate(ends))

    def _encoded(self, text: str) -> tokenizers.Encoding:
        try:
            return self._encoder.encode(text, add_special_tokens=False)
        except BaseException as error:
            if is_of_the_library(error):
                raise InputError(
                    f"the tokenizer cannot encode the text that begins with {text[:50]!r}: {str(error)[:300]}"
                ) from error
            raise

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _opened(data: bytes) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        opened = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        if is_of_the_library(error):
            raise InputError(f"not a Hugging Face tokenizer.json ({str(error)[:300]})") from error
        raise
    opened.no_padding()
    opened.no_truncation()
    opened.encode_special_tokens = True  # '<s>' in a text is three characters, not a control token
    return opened


def is_of_the_library(error: BaseException) -> bool:
    """Whether tokenizers raised it: Exception itself, or what a panic of Rust becomes, which is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"

"""A Hugging Face tokenizer.json as a backend of Tokenizer."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.tokenizers.sentences import find_starts
from data_pipeline.tokenizers.special_tokens import NATIVE


class HuggingFaceModel:
    """Encodes and decodes with a tokenizer.json; adds no special tokens and reads none from text."""

    def __init__(self, data: bytes) -> None:
        import tokenizers

        self.data = data
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"not a Hugging Face tokenizer.json ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # '<s>' in a text is three characters, not a control token
        self.size = 1 + max(self.pieces.values())

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece, special tokens included."""
        found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return found

    @property
    def native_special_ids(self) -> dict[str, int]:
        """Role -> id of pad, bos, eos and unk, as far as the tokenizer has them under a known name."""
        found = {}
        for token in NATIVE:
            ids = [i for i in map(self._tokenizer.token_to_id, token.found_as) if i is not None]
            if ids:
                found[token.role] = ids[0]
        return found

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each piece stands for behind another: decoders drop the space of a first piece."""
        anchor = next(i for i in range(self.size) if self.decode([i]).isalnum())
        known = len(self.decode([anchor]))
        return [self.decode([anchor, i])[known:].encode() for i in range(self.size)]

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [size], True for the ids that stand for text."""
        known = set(self.pieces.values())
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return np.array([i in known and i not in special for i in range(self.size)])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """-> ids, first token of each sentence."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        return encoding.ids, find_starts(text, np.maximum.accumulate(ends))

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

"""The tokenizer of a prepared data set: pieces, special ids, and the folder that it is stored in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Positive, configclass, unused_with, used_with
from data_pipeline.common.files import (
    Location,
    is_file,
    join,
    make_folder,
    read_bytes,
    remove_folder,
    rename,
    temporary_name,
    write_atomically,
)
from data_pipeline.common.json_files import read_json, write_json
from data_pipeline.tokenizers.special_tokens import BEFORE_SENTINELS, FILL_IN_THE_MIDDLE, NATIVE, SENTINELS
from data_pipeline.tokenizers.words import WordPieces, word_pieces

_INFO_FILE = "tokenizer_info.json"
_FORMAT = 1


@configclass
class TokenizerConfig:
    """A tokenizer is trained on a sample of the text, or an existing one is taken.

    model_type: the kind of SentencePiece model that is trained; char has one piece for each character.
    vocab_size: pieces with pad, bos, eos and unk; for char the most there may be.
    path: an existing SentencePiece .model, tokenizer.json, or tokenizer folder of prepared data; null trains one.
    sample_bytes: the most text, in bytes, that it is trained on.
    """

    model_type: Annotated[Literal["bpe", "unigram", "char"], used_with("path", None)] = "bpe"
    vocab_size: Annotated[Positive, used_with("path", None)] = 8192
    path: str | None = None
    sample_bytes: Annotated[Positive, used_with("path", None), unused_with("model_type", "char")] = 10_000_000


class Backend(Protocol):
    """What turns text into the ids of pieces and back."""

    data: bytes
    size: int

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece, its own special tokens included."""
        ...

    @property
    def native_special_ids(self) -> dict[str, int]:
        """Role -> id of those of special_tokens.NATIVE that it has itself."""
        ...

    @property
    def token_bytes(self) -> list[bytes]:
        """What each id spells, as UTF-8 or a part of it."""
        ...

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [size], True for the ids that stand for text."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class _Kind:
    """What the folder says about its backend: which library, and whether text is escaped before encoding."""

    type: Literal["sentencepiece", "huggingface"]
    escaped: bool

    @property
    def file(self) -> str:
        return "tokenizer.model" if self.type == "sentencepiece" else "tokenizer.json"

    def open(self, data: bytes) -> Backend:
        from data_pipeline.tokenizers.huggingface_model import HuggingFaceModel
        from data_pipeline.tokenizers.sentencepiece_model import SentencePieceModel

        return SentencePieceModel(data, self.escaped) if self.type == "sentencepiece" else HuggingFaceModel(data)


_TRAINED = _Kind("sentencepiece", escaped=True)


class Tokenizer:
    """Text to ids and back, with the special ids that every objective uses.

    `vocab_size` counts the pieces with pad, bos, eos and unk. After them follow mask, cls, sep, 100 sentinels
    and the three fill-in-the-middle ids, up to `total_size`: these stand for no text.
    """

    def __init__(self, backend: Backend, kind: _Kind) -> None:
        self.backend, self._kind = backend, kind
        ids = dict(backend.native_special_ids)
        missing = [token.role for token in NATIVE if token.role not in ids]
        ids.update({role: backend.size + i for i, role in enumerate(missing)})
        self.pad, self.bos, self.eos, self.unk = (ids[token.role] for token in NATIVE)
        self.vocab_size = backend.size + len(missing)
        self.mask, self.cls, self.sep = (self.vocab_size + i for i in range(3))
        self.sentinels = range(self.sep + 1, self.sep + 1 + SENTINELS)
        self.fim_prefix, self.fim_middle, self.fim_suffix = (self.sentinels.stop + i for i in range(3))
        self.total_size = self.fim_suffix + 1
        self._native_ids = frozenset((self.pad, self.bos, self.eos, self.unk))

    @classmethod
    def train(cls, texts: Iterable[str], model_type: Literal["bpe", "unigram"], vocab_size: int) -> Tokenizer:
        """A SentencePiece tokenizer of `vocab_size` pieces. Raises InputError where `texts` do not support as many."""
        from data_pipeline.tokenizers.sentencepiece_model import train

        return cls(_TRAINED.open(train(texts, model_type, vocab_size)), _TRAINED)

    @classmethod
    def from_characters(cls, characters: dict[str, int], vocab_size: int) -> Tokenizer:
        """One piece for each of `characters` (with their counts). Raises InputError where `vocab_size` is too small."""
        from data_pipeline.tokenizers.sentencepiece_model import train_characters

        return cls(_TRAINED.open(train_characters(characters, vocab_size)), _TRAINED)

    @classmethod
    def from_file(cls, path: str) -> Tokenizer:
        """From a SentencePiece .model, a Hugging Face tokenizer.json, or a folder that `save` wrote."""
        file = Path(path)
        for folder in (file, file.parent):  # tokenizer.model inside such a folder expects escaped text, too
            if is_file(join(folder, _INFO_FILE)):
                return cls.load(folder)
        if file.suffix not in (".model", ".json"):
            raise InputError(
                f"tokenizer.path={path} is neither a SentencePiece .model nor a tokenizer.json "
                "nor a tokenizer folder of prepared data"
            )
        kind = _Kind("sentencepiece" if file.suffix == ".model" else "huggingface", escaped=False)
        return cls(_open(kind, file), kind)

    @classmethod
    def load(cls, folder: Location) -> Tokenizer:
        """From a folder that `save` wrote. Raises InputError where it is missing, broken or changed."""
        info = _read_info(folder)
        kind = _Kind(info["type"], info["escaped"])
        tokenizer = cls(_open(kind, join(folder, kind.file)), kind)
        if tokenizer._info() != info:
            raise InputError(f"{folder}: {kind.file} is not the one that {_INFO_FILE} describes")
        return tokenizer

    def save(self, folder: Location) -> None:
        """Writes `folder` (model file and tokenizer_info.json) under another name, then renames it."""
        temporary = temporary_name(folder)
        remove_folder(temporary)
        make_folder(temporary)
        write_atomically(join(temporary, self._kind.file), self.backend.data)
        write_json(join(temporary, _INFO_FILE), self._info())
        rename(temporary, folder)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which ids a text becomes."""
        return hashlib.sha256(json.dumps(self._info(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no special id added. Raises InputError for characters that a character model lacks."""
        return self.backend.encode(text)

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """-> `encode(text)`, and the first token of each sentence (int64 [sentences], the first is 0)."""
        return self.backend.encode_with_starts(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ids left out. For a tokenizer trained here, the inverse of `encode`."""
        pieces = [int(i) for i in ids if i < self.backend.size and i not in self._native_ids]
        return self.backend.decode(pieces)

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece that the model file itself holds, its own special tokens included."""
        return self.backend.pieces

    @property
    def special_ids(self) -> dict[str, int]:
        """Role -> id of all of special_tokens.ALL; the sentinels stand in `sentinels`."""
        return {
            "pad": self.pad,
            "bos": self.bos,
            "eos": self.eos,
            "unk": self.unk,
            "mask": self.mask,
            "cls": self.cls,
            "sep": self.sep,
            "fim_prefix": self.fim_prefix,
            "fim_middle": self.fim_middle,
            "fim_suffix": self.fim_suffix,
        }

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [total_size], True for the ids that stand for text."""
        is_text = np.zeros(self.total_size, bool)
        is_text[: self.backend.size] = self.backend.is_text
        is_text[list(self._native_ids)] = False
        return is_text

    @cached_property
    def text_bytes(self) -> npt.NDArray[np.int64]:
        """int64 [total_size]: bytes of UTF-8 that an id spells within a text; 0 for those that stand for none."""
        sizes = np.zeros(self.total_size, np.int64)
        sizes[: self.backend.size] = [len(spelled) for spelled in self.backend.token_bytes]
        return np.where(self.is_text, sizes, 0)

    @property
    def words(self) -> WordPieces:
        """Which ids begin or end a word."""
        # is_text is the longer one: it goes on with the special ids
        spelled = [s if is_text else b"" for s, is_text in zip(self.backend.token_bytes, self.is_text, strict=False)]
        return word_pieces(spelled, self.total_size)

    def _info(self) -> dict[str, Any]:
        ids = {token.role: self.special_ids[token.role] for token in (*NATIVE, *BEFORE_SENTINELS)}
        fim = {token.role: self.special_ids[token.role] for token in FILL_IN_THE_MIDDLE}
        return {
            "format": _FORMAT,
            "type": self._kind.type,
            "file": self._kind.file,
            "escaped": self._kind.escaped,
            "sha256": hashlib.sha256(self.backend.data).hexdigest(),
            "vocab_size": self.vocab_size,
            "total_size": self.total_size,
            "ids": {**ids, "first_sentinel": self.sentinels.start, "sentinels": SENTINELS, **fim},
        }


def _open(kind: _Kind, file: Location) -> Backend:
    try:
        return kind.open(read_bytes(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read_info(folder: Location) -> dict[str, Any]:
    file = join(folder, _INFO_FILE)
    info = read_json(file, hint="the folder contains no tokenizer of prepared data")
    if info.get("format") != _FORMAT or not {"type", "escaped"} <= info.keys():
        raise InputError(f"{file} has format {info.get('format')!r}, this version reads format {_FORMAT}")
    return info

"""The tokenizer of a prepared data set: pieces, special ids, and the folder that it is kept in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import Positive, configclass, unused_with, used_with
from data_pipeline.tokenizers.words import WordPieces, word_pieces

SENTINELS = 100
_INFO_FILE = "tokenizer_info.json"
_FORMAT = 1
_BASIC = ("pad", "bos", "eos", "unk")


@configclass
class TokenizerConfig:
    """A tokenizer is trained on a sample of the text, or a ready one is taken.

    model_type: the kind of SentencePiece model that is trained; char has one piece for each character.
    vocab_size: pieces with pad, bos, eos and unk; for char the most there may be.
    path: a ready SentencePiece .model, tokenizer.json, or the tokenizer folder of prepared data; null trains one.
    sample_bytes: size of the sample.
    """

    model_type: Annotated[Literal["bpe", "unigram", "char"], used_with("path", None)] = "bpe"
    vocab_size: Annotated[Positive, used_with("path", None)] = 8192
    path: str | None = None
    sample_bytes: Annotated[Positive, unused_with("model_type", "char")] = 10_000_000


class Backend(Protocol):
    """What turns text into the ids of pieces and back."""

    data: bytes
    size: int

    @property
    def own_ids(self) -> dict[str, int]: ...

    @property
    def surfaces(self) -> list[bytes]: ...

    @property
    def ordinary(self) -> npt.NDArray[np.bool_]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class _Kind:
    """What the folder says of its backend: the file's name, and whether text is escaped before it."""

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
        self._backend, self._kind = backend, kind
        ids = dict(backend.own_ids)
        missing = [name for name in _BASIC if name not in ids]
        ids.update({name: backend.size + i for i, name in enumerate(missing)})
        self.pad, self.bos, self.eos, self.unk = (ids[name] for name in _BASIC)
        self.vocab_size = backend.size + len(missing)
        self.mask, self.cls, self.sep = (self.vocab_size + i for i in range(3))
        self.sentinels = range(self.sep + 1, self.sep + 1 + SENTINELS)
        self.fim_prefix, self.fim_middle, self.fim_suffix = (self.sentinels.stop + i for i in range(3))
        self.total_size = self.fim_suffix + 1
        self._basic_ids = frozenset((self.pad, self.bos, self.eos, self.unk))

    @classmethod
    def train(cls, texts: Iterable[str], model_type: Literal["bpe", "unigram"], vocab_size: int) -> Tokenizer:
        """A SentencePiece tokenizer of `vocab_size` pieces. InputError: `texts` don't support as many."""
        from data_pipeline.tokenizers.sentencepiece_model import train

        return cls(_TRAINED.open(train(texts, model_type, vocab_size)), _TRAINED)

    @classmethod
    def of_characters(cls, characters: dict[str, int], vocab_size: int) -> Tokenizer:
        """One piece for each of `characters` (with their counts), at most `vocab_size`; else InputError."""
        from data_pipeline.tokenizers.sentencepiece_model import train_characters

        return cls(_TRAINED.open(train_characters(characters, vocab_size)), _TRAINED)

    @classmethod
    def ready(cls, path: str) -> Tokenizer:
        """From a SentencePiece .model, a Hugging Face tokenizer.json, or a folder that `save` wrote."""
        file = Path(path)
        for folder in (file, file.parent):  # tokenizer.model of such a folder: its text is escaped as well
            if (folder / _INFO_FILE).is_file():
                return cls.load(folder)
        if file.suffix not in (".model", ".json"):
            raise InputError(
                f"tokenizer.path={path}: neither a SentencePiece .model nor a tokenizer.json "
                "nor the tokenizer folder of prepared data"
            )
        kind = _Kind("sentencepiece" if file.suffix == ".model" else "huggingface", escaped=False)
        return cls(_open(kind, file), kind)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """From a folder that `save` wrote. Raises InputError where it is missing, broken or changed."""
        info = _read_info(Path(folder))
        kind = _Kind(info["type"], info["escaped"])
        tokenizer = cls(_open(kind, Path(folder) / kind.file), kind)
        if tokenizer._info() != info:
            raise InputError(f"{folder}: {kind.file} is not the one that {_INFO_FILE} describes")
        return tokenizer

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `folder` (model file and tokenizer_info.json) under another name, then renames it."""
        target = Path(folder)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / self._kind.file).write_bytes(self._backend.data)
        (temporary / _INFO_FILE).write_text(json.dumps(self._info(), indent=1) + "\n")
        os.replace(temporary, target)

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which ids a text becomes."""
        return hashlib.sha256(json.dumps(self._info(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no special id added. InputError: characters that a character model lacks."""
        return self._backend.encode(text)

    def encode_with_starts(self, text: str) -> tuple[list[int], npt.NDArray[np.int64]]:
        """-> `encode(text)`, and the first token of each sentence (int64 [sentences], the first is 0)."""
        return self._backend.encode_with_starts(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ids left out. For a tokenizer trained here, the inverse of `encode`."""
        pieces = [int(i) for i in ids if i < self._backend.size and i not in self._basic_ids]
        return self._backend.decode(pieces)

    @property
    def ordinary(self) -> npt.NDArray[np.bool_]:
        """bool [total_size], True for the ids that stand for text."""
        ordinary = np.zeros(self.total_size, bool)
        ordinary[: self._backend.size] = self._backend.ordinary
        ordinary[list(self._basic_ids)] = False
        return ordinary

    @property
    def words(self) -> WordPieces:
        """Which ids begin or end a word."""
        surfaces = [s if kept else b"" for s, kept in zip(self._backend.surfaces, self.ordinary, strict=False)]
        return word_pieces(surfaces, self.total_size)

    def _info(self) -> dict[str, Any]:
        ids = {name: getattr(self, name) for name in (*_BASIC, "mask", "cls", "sep")}
        fim = {name: getattr(self, name) for name in ("fim_prefix", "fim_middle", "fim_suffix")}
        return {
            "format": _FORMAT,
            "type": self._kind.type,
            "file": self._kind.file,
            "escaped": self._kind.escaped,
            "sha256": hashlib.sha256(self._backend.data).hexdigest(),
            "vocab_size": self.vocab_size,
            "total_size": self.total_size,
            "ids": {**ids, "first_sentinel": self.sentinels.start, "sentinels": SENTINELS, **fim},
        }


def _open(kind: _Kind, file: Path) -> Backend:
    try:
        return kind.open(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / _INFO_FILE
    try:
        info = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: no tokenizer is kept there ({error})") from error
    if not isinstance(info, dict) or info.get("format") != _FORMAT or not {"type", "escaped"} <= info.keys():
        raise InputError(f"{file}: not of format {_FORMAT}, which this version reads")
    return info

"""The tokenizer of a prepared data set: pieces, special ids, and the folder that it is stored in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import PathText, Positive, Smoothing, configclass, unused_with, used_with
from data_pipeline.common.files import (
    Location,
    is_file,
    join,
    make_folder,
    read_bytes,
    rename,
    temporary_name,
    write_atomically,
)
from data_pipeline.common.json_files import read_json, write_json
from data_pipeline.tokenizers.languages import Languages, language_ids, language_ids_from_json
from data_pipeline.tokenizers.native_tokens import complete, mapped_names, require_pieces
from data_pipeline.tokenizers.similar import SimilarWords, load_similar
from data_pipeline.tokenizers.special_tokens import MAX_VOCABULARY, NATIVE, ROLES, SENTINEL_ROLES, SENTINELS
from data_pipeline.tokenizers.words import WordPieces, word_pieces

_INFO_FILE = "tokenizer_info.json"
_MODEL_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # in a folder, the one that is taken first
_FORMAT = 1
_MAX_MODEL_BYTES = 1 << 28


@configclass
class TokenizerConfig:
    """A tokenizer is trained on a sample of the text, or an existing one is taken.

    model_type: the kind of SentencePiece model that is trained; char has one piece for each character. byte trains
      none: each byte of UTF-8 is a token, by ByT5's ids.
    vocab_size: pieces with pad, bos, eos and unk; for char the most there may be.
    path: an existing SentencePiece .model, tokenizer.json, folder of either, or tokenizer folder of prepared data; null
      trains one.
    special_tokens: which of its pieces are special, as {bos: "<bos>", mask: "<mask>"}, where neither its folder nor the
      file itself says so; roles are pad, bos, eos, unk, mask, cls, sep, fim_prefix, fim_middle, fim_suffix and
      sentinel_0 to sentinel_99.
    languages: a token for each, as in [en_XX, de_DE], for objective.language_tokens; a ready tokenizer keeps those that
      it has.
    sample_bytes: the most text, in bytes, that it is trained on.
    smoothing: the part of that which each entry of corpus.inputs has, a language say, goes by its size to this power:
      1 is by size, 0.7 and 0.3 lift small ones.
    words: jieba finds the words of Chinese text, and where they begin is kept with the tokens, for
      objective.words=segmented; null leaves words to how they are spelled.
    """

    model_type: Annotated[Literal["bpe", "unigram", "char", "byte"], used_with("path", None)] = "bpe"
    vocab_size: Annotated[Positive, used_with("path", None), unused_with("model_type", "byte")] = 8192
    path: PathText | None = None
    special_tokens: Annotated[dict[str, str], unused_with("path", None)] = Field(default_factory=dict)
    languages: Languages = Field(default_factory=list)
    sample_bytes: Annotated[Positive, used_with("path", None), unused_with("model_type", "char", "byte")] = 10_000_000
    smoothing: Annotated[Smoothing, used_with("path", None), unused_with("model_type", "char", "byte")] = 1.0
    words: Literal["jieba"] | None = None


class Backend(Protocol):
    """What turns text into the ids of pieces and back."""

    data: bytes
    size: int

    @property
    def pieces(self) -> dict[str, int]:
        """The id of every piece, its own special tokens included."""
        ...

    def special_ids(self, named: Mapping[str, str]) -> dict[str, int]:
        """Role -> id of the special tokens that it has itself. named: role -> name, as far as that is known."""
        ...

    def protect(self, special_ids: Collection[int]) -> Backend:
        """-> the same, of which no text becomes one of these ids."""
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
        from data_pipeline.tokenizers.tokenizer_json import check_tokenizer_json

        if self.type == "sentencepiece":
            return SentencePieceModel(data, self.escaped)
        check_tokenizer_json(data)
        return HuggingFaceModel(data)


_TRAINED = _Kind("sentencepiece", escaped=True)


class Tokenizer:
    """Text to ids and back, with the special ids that every objective uses.

    Special ids that the model has itself are used as they are; those that it lacks follow its pieces, pad, bos, eos and
    unk first, up to `total_size`: these stand for no text. `vocab_size` counts the pieces with pad, bos, eos and unk.
    languages: name -> id of the tokens that say of which language a text is; most tokenizers have none.
    """

    def __init__(
        self, backend: Backend, kind: _Kind, special_ids: Mapping[str, int], languages: Mapping[str, int] | None = None
    ) -> None:
        """special_ids: role -> id of all ROLES and SENTINEL_ROLES."""
        self.languages = dict(languages or {})
        named = {role: i for role, i in special_ids.items() if role != "unk"} | self.languages
        own = sorted({i for i in named.values() if i < backend.size})
        self.backend, self._kind = backend.protect(own), kind
        self.pad, self.bos, self.eos, self.unk = (special_ids[token.role] for token in NATIVE)
        self.mask, self.cls, self.sep = (special_ids[role] for role in ("mask", "cls", "sep"))
        self.fim_prefix, self.fim_middle, self.fim_suffix = (special_ids[role] for role in ROLES[-3:])
        self.sentinels: Sequence[int] = _as_range([special_ids[role] for role in SENTINEL_ROLES])
        self.vocab_size = backend.size + sum(special_ids[token.role] >= backend.size for token in NATIVE)
        self.total_size = max(backend.size, *(i + 1 for i in (*special_ids.values(), *self.languages.values())))
        self._own_special_ids = frozenset((*own, self.unk))
        self.similar: SimilarWords | None = None  # of the folder that it was loaded from

    @classmethod
    def _of(cls, backend: Backend, kind: _Kind, named: Mapping[str, str] | None = None) -> Tokenizer:
        """With its own special ids and new ones for those that it lacks."""
        return cls(backend, kind, complete(backend.special_ids(named or {}), backend.size))

    @classmethod
    def train(cls, texts: Iterable[str], model_type: Literal["bpe", "unigram"], vocab_size: int) -> Tokenizer:
        """A SentencePiece tokenizer of `vocab_size` pieces. Raises InputError where `texts` do not support as many."""
        from data_pipeline.tokenizers.sentencepiece_model import train

        return cls._of(_TRAINED.open(train(texts, model_type, vocab_size)), _TRAINED)

    @classmethod
    def from_characters(cls, characters: dict[str, int], vocab_size: int) -> Tokenizer:
        """One piece for each of `characters` (with their counts). Raises InputError where `vocab_size` is too small."""
        from data_pipeline.tokenizers.sentencepiece_model import train_characters

        return cls._of(_TRAINED.open(train_characters(characters, vocab_size)), _TRAINED)

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        from data_pipeline.tokenizers.byte_tokenizer import byte_tokenizer_json

        kind = _Kind("huggingface", escaped=False)
        return cls._of(kind.open(byte_tokenizer_json()), kind)

    @classmethod
    def from_file(cls, path: str, special_tokens: Mapping[str, str] | None = None) -> Tokenizer:
        """From a SentencePiece .model, a Hugging Face tokenizer.json, a folder that has one of them, or a folder that
        `save` wrote.

        special_tokens: role -> name, which count before what the file's folder says (tokenizer_config.json,
        special_tokens_map.json) and that before the file itself.
        """
        file = _model_file(Path(path))
        for folder in (file, file.parent):  # tokenizer.model inside such a folder expects escaped text, too
            if is_file(join(folder, _INFO_FILE)):
                return cls.load(folder)
        if file.suffix not in (".model", ".json"):
            raise InputError(
                f"tokenizer.path={path} is neither a SentencePiece .model nor a tokenizer.json "
                "nor a tokenizer folder of prepared data"
            )
        kind = _Kind("sentencepiece" if file.suffix == ".model" else "huggingface", escaped=False)
        backend, given = _open(kind, file), dict(special_tokens or {})
        require_pieces(given, backend.pieces)
        # Where a SentencePiece model says which pieces are its own, transformers' map may add to it names of new tokens
        mapped = mapped_names(file.parent) if kind.type == "huggingface" else {}
        return cls._of(backend, kind, {**mapped, **given})

    @classmethod
    def load(cls, folder: Location) -> Tokenizer:
        """From a folder that `save` wrote. Raises InputError where it is missing, broken or changed."""
        info = _read_info(folder)
        kind = _Kind(info["type"], info["escaped"])
        backend = _open(kind, join(folder, kind.file))
        if hashlib.sha256(backend.data).hexdigest() == info.get("sha256"):
            languages = language_ids_from_json(info.get("languages"), _INFO_FILE)
            tokenizer = cls(backend, kind, _ids_from_json(info["ids"]), languages)
            if tokenizer._info() == info:
                tokenizer.similar = load_similar(folder, tokenizer.total_size)
                return tokenizer
        raise InputError(f"{folder}: {kind.file} is not the one that {_INFO_FILE} describes")

    def with_languages(self, names: Sequence[str]) -> Tokenizer:
        """With a token for each of these, after all others where it has none of this name."""
        if not names:
            return self
        ids = language_ids(names, self.languages, self.pieces, self.total_size)
        special = self.special_ids | dict(zip(SENTINEL_ROLES, self.sentinels, strict=True))
        return Tokenizer(self.backend, self._kind, special, ids)

    def save(self, folder: Location) -> None:
        """Writes `folder` (model file and tokenizer_info.json) under another name, then renames it."""
        temporary = temporary_name(folder)
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

    def spelled(self, ids: Iterable[int]) -> list[bytes]:
        """What each of these ids of pieces spells, in UTF-8 or a part of it."""
        token_bytes = self.backend.token_bytes
        return [token_bytes[i] for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special ids left out. For a tokenizer trained here, the inverse of `encode`."""
        pieces = [int(i) for i in ids if i < self.backend.size and i not in self._own_special_ids]
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

    def used_ids(
        self, roles: Collection[str], sentinels: bool = False, languages: bool = False
    ) -> npt.NDArray[np.int64]:
        """The ids that an objective uses, ascending: all of the model's own, and of those that were added to it only
        these roles'. languages: those of all languages, too."""
        special = [self.special_ids[role] for role in roles] + (list(self.sentinels) if sentinels else [])
        special += self.languages.values() if languages else []
        return np.unique([*range(self.backend.size), *special]).astype(np.int64)

    def describe_special(self) -> str:
        """Which special tokens are the model's own, and which were added, for a person."""
        names = {i: name for name, i in self.pieces.items()}
        own = [f"{role} {names[i]!r}" for role, i in self.special_ids.items() if i in names]
        count = sum(i in names for i in self.sentinels)
        own += [f"{count} sentinels"] * bool(count)
        added = [role for role, i in self.special_ids.items() if i not in names]
        added += [f"{SENTINELS - count} sentinels"] * (count < SENTINELS)
        lacking = f"; added after its {self.backend.size} pieces: {', '.join(added)}" if added else ""
        return f"special tokens of its own: {', '.join(own) or 'none'}{lacking}"

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """bool [total_size], True for the ids that stand for text."""
        is_text = np.zeros(self.total_size, bool)
        is_text[: self.backend.size] = self.backend.is_text
        is_text[list(self._own_special_ids)] = False
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
        return {
            "format": _FORMAT,
            "type": self._kind.type,
            "file": self._kind.file,
            "escaped": self._kind.escaped,
            "sha256": hashlib.sha256(self.backend.data).hexdigest(),
            "vocab_size": self.vocab_size,
            "total_size": self.total_size,
            "ids": _ids_to_json(self.special_ids, self.sentinels),
            **({"languages": self.languages} if self.languages else {}),
        }


def _as_range(ids: list[int]) -> Sequence[int]:
    """A range where the ids follow each other."""
    expected = range(ids[0], ids[0] + len(ids))
    return expected if list(expected) == ids else tuple(ids)


def _ids_to_json(ids: Mapping[str, int], sentinels: Sequence[int]) -> dict[str, Any]:
    follow = isinstance(sentinels, range)
    counted = {"first_sentinel": sentinels[0], "sentinels": SENTINELS} if follow else {"sentinel_ids": [*sentinels]}
    return {**{role: ids[role] for role in ROLES[:-3]}, **counted, **{role: ids[role] for role in ROLES[-3:]}}


def _ids_from_json(ids: Mapping[str, Any]) -> dict[str, int]:
    """Role -> id. Raises InputError where one is missing or none that a tokenizer may have."""
    first = ids.get("first_sentinel")
    sentinels = ids.get("sentinel_ids", [] if type(first) is not int else range(first, first + SENTINELS))
    if not set(ROLES) <= ids.keys() or not isinstance(sentinels, list | range) or len(sentinels) != SENTINELS:
        raise InputError(f"{_INFO_FILE} lacks special ids")
    found = {**{role: ids[role] for role in ROLES}, **dict(zip(SENTINEL_ROLES, sentinels, strict=True))}
    for role, i in found.items():
        if type(i) is not int or not 0 <= i < MAX_VOCABULARY:
            raise InputError(f"{_INFO_FILE}: {role} has the id {str(i)[:30]}; ids are from 0 to {MAX_VOCABULARY - 1}")
    return found


def _model_file(path: Path) -> Path:
    """The file of a tokenizer in a folder of one, or `path` itself."""
    if is_file(join(path, _INFO_FILE)):
        return path
    return next((Path(join(path, name)) for name in _MODEL_FILES if is_file(join(path, name))), path)


def _open(kind: _Kind, file: Location) -> Backend:
    try:
        return kind.open(read_bytes(file, _MAX_MODEL_BYTES))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read_info(folder: Location) -> dict[str, Any]:
    file = join(folder, _INFO_FILE)
    info = read_json(file, hint="the folder contains no tokenizer of prepared data")
    if info.get("format") != _FORMAT:
        raise InputError(f"{file} has format {info.get('format')!r}, this version reads format {_FORMAT}")
    known = info.get("type") in ("sentencepiece", "huggingface") and type(info.get("escaped")) is bool
    if not known or not isinstance(info.get("ids"), dict):
        raise InputError(f"{file} is broken: it does not say of which type the tokenizer is and which ids it has")
    return info

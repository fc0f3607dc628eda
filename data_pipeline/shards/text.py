"""Shards of tokens: plain WebDataset tars, and an index beside each.

A sample of a tar is a block: whole documents, some 64K tokens of them. Its members are
- `KEY.tokens.npy`: uint16 or uint32 [tokens], without special ids;
- `KEY.documents.npy`: int64 [documents + 1], where each document starts, then the end;
- `KEY.sentences.npy`: int64 [sentences], where each sentence starts; every document starts one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import flush, open_file, sha256, write_atomically
from data_pipeline.shards.manifest import SPLITS, Manifest, Shard, Split

_TAR_BLOCK, _TAR_RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


@dataclass(frozen=True)
class TokenizedDocument:
    """`tokens` [tokens] and the first token of each of its sentences [sentences]."""

    tokens: npt.NDArray[Any]
    sentences: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """Where the members of each block lie in the tar (bytes), and the documents' lengths (tokens)."""

    tokens_offset: npt.NDArray[np.int64]  # [blocks]
    tokens_bytes: npt.NDArray[np.int64]  # [blocks]
    sentences_offset: npt.NDArray[np.int64]  # [blocks]
    sentences_bytes: npt.NDArray[np.int64]  # [blocks]
    documents: npt.NDArray[np.int32]  # [blocks], number of documents
    lengths: npt.NDArray[np.int32]  # [sum of documents]

    @property
    def tar_bytes(self) -> int:
        """The size of the tar: sentences are its last member, then come two empty blocks and the padding."""
        end = _round_up(int(self.sentences_offset[-1] + self.sentences_bytes[-1]), _TAR_BLOCK)
        return _round_up(end + 2 * _TAR_BLOCK, _TAR_RECORD)


def token_dtype(total_size: int) -> npt.DTypeLike:
    """The narrowest type that holds every id below `total_size`."""
    return np.uint16 if total_size <= 1 << 16 else np.uint32


class ShardWriter:
    """Packs documents into blocks, and blocks into shards `DIR/SPLIT/shard-000000.tar` of `shard_bytes`.

    Starts at shard number `first`: those before it are finished. What is written depends on the order of the
    documents alone. Leaving the `with` block in order writes what remains; leaving it by an error does not.
    """

    def __init__(self, root: Path, split: str, block_tokens: int, shard_bytes: int, first: int = 0) -> None:
        self._root, self._split = root, split
        self._block_tokens, self._shard_bytes = block_tokens, shard_bytes
        self._number = first
        self._tar: _OpenShard | None = None
        self._block: list[TokenizedDocument] = []
        self._tokens_in_block = 0
        (root / split).mkdir(parents=True, exist_ok=True)

    def add(self, document: TokenizedDocument) -> None:
        if self._block and self._tokens_in_block + len(document.tokens) > self._block_tokens:
            self._end_block()
        self._block.append(document)
        self._tokens_in_block += len(document.tokens)

    def close(self) -> None:
        if self._block:
            self._end_block()
        if self._tar is not None:
            self._end_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()

    def _end_block(self) -> None:
        if self._tar is None:
            self._tar = _OpenShard(shard_path(self._root, self._split, self._number))
        self._tar.add(f"{self._split}-{self._number:06d}", self._block)
        self._block, self._tokens_in_block = [], 0
        if self._tar.bytes >= self._shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        self._number += 1


class _OpenShard:
    """A tar that is being written under a temporary name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file = open_file(self._temporary, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._members: dict[str, list[int]] = {
            f"{m}_{x}": [] for m in ("tokens", "sentences") for x in ("offset", "bytes")
        }
        self._documents: list[int] = []
        self._lengths: list[int] = []

    @property
    def bytes(self) -> int:
        return self._tar.offset

    def add(self, prefix: str, block: Sequence[TokenizedDocument]) -> None:
        key = f"{prefix}-{len(self._documents):06d}"
        lengths = [len(d.tokens) for d in block]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        sentences = [d.sentences + start for d, start in zip(block, starts, strict=False)]
        self._member(key, "tokens", np.concatenate([d.tokens for d in block]))
        self._member(key, "documents", starts)
        self._member(key, "sentences", np.concatenate(sentences).astype(np.int64))
        self._documents.append(len(block))
        self._lengths += lengths

    def close(self) -> None:
        """The index comes first under its final name: a tar that is there is whole, and so is its index."""
        self._tar.close()
        flush(self._file, self._temporary)
        self._file.close()
        arrays: dict[str, Any] = {name: np.array(v, dtype=np.int64) for name, v in self._members.items()}
        arrays["documents"] = np.array(self._documents, dtype=np.int32)
        arrays["lengths"] = np.array(self._lengths, dtype=np.int32)
        data = io.BytesIO()
        np.savez(data, **arrays)
        write_atomically(index_path(self._path), data.getvalue())
        os.replace(self._temporary, self._path)

    def _member(self, key: str, name: str, array: npt.NDArray[Any]) -> None:
        data = io.BytesIO()
        np.lib.format.write_array(data, array, allow_pickle=False)
        member = tarfile.TarInfo(f"{key}.{name}.npy")  # its time, owner and group are 0 unless set
        member.size = data.tell()
        member.mode = 0o644
        data.seek(0)
        if name != "documents":
            self._members[f"{name}_offset"].append(self._tar.offset + _TAR_BLOCK)  # after the member's header
            self._members[f"{name}_bytes"].append(member.size)
        self._tar.addfile(member, data)


def shard_path(root: Path, split: str, number: int) -> Path:
    return root / split / f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def finished_shards(root: Path, split: str) -> list[tuple[Path, ShardIndex]]:
    """The whole shards of `split` from number 0 on, up to the first that is missing."""
    found: list[tuple[Path, ShardIndex]] = []
    while (path := shard_path(root, split, len(found))).is_file():
        index = _parse_index(index_path(path).read_bytes()) if index_path(path).is_file() else None
        if index is None or path.stat().st_size != index.tar_bytes:
            break
        found.append((path, index))
    return found


def remove_temporaries(root: Path) -> None:
    """Removes what a killed run left unfinished."""
    for split in SPLITS:
        for path in (root / split).glob(".*.tmp"):
            path.unlink()


def describe_split(root: Path, split: str) -> Split:
    """The finished shards of `split` as the manifest lists them, their checksums computed from the files."""
    shards = tuple(_describe_shard(root, path, index) for path, index in finished_shards(root, split))
    return Split(
        samples=sum(s.samples for s in shards),
        documents=sum(s.documents for s in shards),
        tokens=sum(s.tokens for s in shards),
        shards=shards,
    )


def _describe_shard(root: Path, path: Path, index: ShardIndex) -> Shard:
    beside = index_path(path)
    return Shard(
        name=path.relative_to(root).as_posix(),
        samples=len(index.documents),
        documents=len(index.lengths),
        tokens=int(index.lengths.sum(dtype=np.int64)),
        bytes=path.stat().st_size,
        sha256=sha256(path),
        index=beside.relative_to(root).as_posix(),
        index_sha256=sha256(beside),
    )


BLOCKS_IN_MEMORY = 128  # of some 64K tokens: the documents of a window's blocks are read in shuffled order


class ShardReader:
    """Reads blocks of one split by their offsets. A file's sha256 is checked when it is first read."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._root = Path(manifest.root)
        self.shards = manifest.splits[split].shards
        self._indexes: dict[int, ShardIndex] = {}
        self._verified: set[int] = set()
        self._cached_block = lru_cache(maxsize=BLOCKS_IN_MEMORY)(self.read_block)

    def index(self, shard: int) -> ShardIndex:
        """The index of shard number `shard`. Raises InputError where its checksum is wrong."""
        if shard not in self._indexes:
            name = self.shards[shard].index
            with open_file(self._root / name) as file:
                data = file.read()
            _require(self._root / name, self.shards[shard].index_sha256, hashlib.sha256(data).hexdigest())
            index = _parse_index(data)
            if index is None:
                raise InputError(f"{self._root / name} is not an index of this version")
            self._indexes[shard] = index
        return self._indexes[shard]

    @property
    def blocks_per_shard(self) -> list[int]:
        return [shard.samples for shard in self.shards]

    def lengths(self, shard: int) -> npt.NDArray[np.int32]:
        """Tokens of each document of the shard, int32 [documents], in the order of the blocks."""
        return self.index(shard).lengths

    def document_lengths(self, shard: int, block: int) -> npt.NDArray[np.int32]:
        """Tokens of each document of one block, int32 [documents]."""
        index = self.index(shard)
        last = int(index.documents[: block + 1].sum())
        return index.lengths[last - int(index.documents[block]) : last]

    def read_document(self, shard: int, block: int, document: int) -> TokenizedDocument:
        """One document of a block, its sentences counted from its own first token."""
        tokens, sentences = self._cached_block(shard, block)
        ends = np.cumsum(self.document_lengths(shard, block))
        first, last = int(ends[document - 1]) if document else 0, int(ends[document])
        inside = sentences[np.searchsorted(sentences, first) : np.searchsorted(sentences, last)]
        return TokenizedDocument(tokens[first:last], inside - first)

    def read_block(self, shard: int, block: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """-> tokens [tokens], first token of each sentence [sentences]. InputError: a checksum is wrong."""
        index = self.index(shard)
        self._verify(shard)
        with open_file(self._root / self.shards[shard].name) as file:
            tokens = _read_array(file, int(index.tokens_offset[block]), int(index.tokens_bytes[block]))
            sentences = _read_array(file, int(index.sentences_offset[block]), int(index.sentences_bytes[block]))
        return tokens, sentences

    def _verify(self, shard: int) -> None:
        if shard not in self._verified:
            path = self._root / self.shards[shard].name
            _require(path, self.shards[shard].sha256, sha256(path))
            self._verified.add(shard)


def _read_array(file: IO[bytes], offset: int, size: int) -> npt.NDArray[Any]:
    file.seek(offset)
    return np.lib.format.read_array(io.BytesIO(file.read(size)), allow_pickle=False)


def _parse_index(data: bytes) -> ShardIndex | None:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return ShardIndex(**{name: arrays[name] for name in arrays.files})
    except (ValueError, TypeError, OSError):
        return None


def _require(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{path} differs from the manifest: sha256 expected {expected}, found {found}")


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

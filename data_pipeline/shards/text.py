"""Shards of tokens. A sample of a tar is a block: whole documents, some 64K tokens of them. Its members are

- `KEY.tokens.npy`: uint16 or uint32 [tokens], without special ids;
- `KEY.documents.npy`: int64 [documents + 1], where each document starts, then the end;
- `KEY.sentences.npy`: int64 [sentences], where each sentence starts; every document starts one;
- `KEY.words.npy`, with word borders of a segmenter: uint8 [tokens / 8, rounded up], a bit for each token, the first one
  the highest of its byte: 1 where a word begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.shards.arrays import Malformed, read_array, write_array
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.tar import IndexedShards, Place, ShardWriter, members_problem, tar_size

BLOCKS_IN_MEMORY = 128  # of some 64K tokens: the documents of a window's blocks are read in shuffled order


@dataclass(frozen=True)
class TokenizedDocument:
    """`tokens` [tokens] and the first token of each of its sentences [sentences]. words: [tokens], True where a word of
    a segmenter begins; None where the data has none."""

    tokens: npt.NDArray[Any]
    sentences: npt.NDArray[np.int64]
    words: npt.NDArray[np.bool_] | None = None


def halves(pair: TokenizedDocument) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The source and the target [tokens] of a document of corpus=pairs: its second sentence is the target."""
    border = int(pair.sentences[1])
    return pair.tokens[:border], pair.tokens[border:]


Block = Sequence[TokenizedDocument]


@dataclass(frozen=True)
class TextIndex:
    """Where the members of each block lie in the tar (bytes), and the documents' lengths (tokens)."""

    KINDS: ClassVar[Mapping[str, str]] = {
        "tokens_offset": "i8",
        "tokens_bytes": "i8",
        "sentences_offset": "i8",
        "sentences_bytes": "i8",
        "documents": "i4",
        "lengths": "i4",
    }
    MOST_BYTES: ClassVar[int] = 36

    tokens_offset: npt.NDArray[np.int64]  # [blocks]
    tokens_bytes: npt.NDArray[np.int64]  # [blocks]
    sentences_offset: npt.NDArray[np.int64]  # [blocks]
    sentences_bytes: npt.NDArray[np.int64]  # [blocks]
    documents: npt.NDArray[np.int32]  # [blocks], number of documents
    lengths: npt.NDArray[np.int32]  # [sum of documents]

    @property
    def num_samples(self) -> int:
        return len(self.documents)

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def members(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(offset, size) of the members that are read, in their order, each [blocks]."""
        return [(self.tokens_offset, self.tokens_bytes), (self.sentences_offset, self.sentences_bytes)]

    @property
    def tar_bytes(self) -> int:
        offset, size = self.members[-1]
        return tar_size(int(offset[-1] + size[-1]))

    def places(self, block: int) -> list[Place]:
        """Of the members of a block, as in `members`."""
        return [Place(int(offset[block]), int(size[block])) for offset, size in self.members]

    def problem(self, shard: Shard, manifest: Manifest) -> str | None:
        """See Index."""
        per_block = [len(array) for member in self.members for array in member]
        if {*per_block, len(self.documents)} != {shard.samples}:
            return f"it does not describe {shard.samples} blocks"
        counted = self.documents.sum(dtype=np.int64)
        if self.documents.min() < 1 or not counted == len(self.lengths) == shard.documents:
            return f"it does not describe {shard.documents} documents"
        if self.lengths.min() < 0 or self.num_tokens != shard.tokens:
            return f"its documents do not have {shard.tokens} tokens"
        offsets = np.stack([offset for offset, _ in self.members], 1).reshape(-1)
        sizes = np.stack([size for _, size in self.members], 1).reshape(-1)
        return members_problem(offsets, sizes, shard.bytes) or (
            None if self.tar_bytes == shard.bytes else "its last member does not end where the tar does"
        )


@dataclass(frozen=True)
class WordsIndex(TextIndex):
    """The same of shards with word borders."""

    KINDS: ClassVar[Mapping[str, str]] = {**TextIndex.KINDS, "words_offset": "i8", "words_bytes": "i8"}
    MOST_BYTES: ClassVar[int] = 52

    words_offset: npt.NDArray[np.int64]  # [blocks]
    words_bytes: npt.NDArray[np.int64]  # [blocks]

    @property
    def members(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        return [*super().members, (self.words_offset, self.words_bytes)]


class BlockRow(NamedTuple):
    members: list[Place]  # those that the index has
    lengths: list[int]


class TextLayout:
    """How blocks stand in a shard. words: whether they have word borders."""

    def __init__(self, words: bool = False) -> None:
        self.index_type: type[TextIndex] = WordsIndex if words else TextIndex
        self.kinds = ("tokens.npy", "sentences.npy", *(("words.npy",) if words else ()))

    def members(self, block: Block) -> Mapping[str, bytes]:
        starts = np.cumsum([0] + [len(d.tokens) for d in block]).astype(np.int64)
        sentences = [d.sentences + start for d, start in zip(block, starts[:-1], strict=True)]
        members = {
            "tokens.npy": write_array(np.concatenate([d.tokens for d in block])),
            "documents.npy": write_array(starts),
            "sentences.npy": write_array(np.concatenate(sentences).astype(np.int64)),
        }
        if "words.npy" in self.kinds:
            words = [d.words for d in block if d.words is not None]
            assert len(words) == len(block), "a document without word borders"
            members["words.npy"] = write_array(np.packbits(np.concatenate(words)))
        return members

    def row(self, block: Block, key: str, places: Mapping[str, Place]) -> BlockRow:
        return BlockRow([places[kind] for kind in self.kinds], [len(d.tokens) for d in block])

    def index(self, rows: Sequence[BlockRow]) -> TextIndex:
        places = np.array([row.members for row in rows], np.int64)  # [blocks, kinds, (offset, size)]
        members = {
            f"{kind.removesuffix('.npy')}_{part}": places[:, i, j]
            for i, kind in enumerate(self.kinds)
            for j, part in enumerate(("offset", "bytes"))
        }
        return self.index_type(
            **members,
            documents=np.array([len(row.lengths) for row in rows], np.int32),
            lengths=np.array([length for row in rows for length in row.lengths], np.int32),
        )


def token_dtype(total_size: int) -> npt.DTypeLike:
    """The narrowest type that holds every id below `total_size`."""
    return np.uint16 if total_size <= 1 << 16 else np.uint32


class BlockWriter:
    """Packs documents into blocks of `block_tokens` (more where one document is longer), and blocks into shards.
    words: whether the documents have word borders."""

    def __init__(
        self, root: str, split: str, block_tokens: int, shard_bytes: int, first: int = 0, words: bool = False
    ) -> None:
        self._shards = ShardWriter(root, split, TextLayout(words), shard_bytes, first)
        self._block_tokens = block_tokens
        self._block: list[TokenizedDocument] = []
        self._tokens_in_block = 0

    def add(self, document: TokenizedDocument) -> None:
        if self._block and self._tokens_in_block + len(document.tokens) > self._block_tokens:
            self._end_block()
        self._block.append(document)
        self._tokens_in_block += len(document.tokens)

    def end_shard(self) -> None:
        """Closes the open block and shard, if any."""
        if self._block:
            self._end_block()
        self._shards.end_shard()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.end_shard()

    def _end_block(self) -> None:
        self._shards.add(self._block)
        self._block, self._tokens_in_block = [], 0


class TextReader:
    """Reads documents of one split, a block at a time."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        info = manifest.tokenizer
        index: type[TextIndex] = WordsIndex if info is not None and info.words else TextIndex
        self._shards = IndexedShards(manifest, split, index)
        self._cached_block = lru_cache(maxsize=BLOCKS_IN_MEMORY)(self.read_block)

    @property
    def name(self) -> str:
        return self._shards.name

    def keep_blocks(self, count: int) -> None:
        if count > BLOCKS_IN_MEMORY:
            self._cached_block = lru_cache(maxsize=count)(self.read_block)

    def index(self, shard: int) -> TextIndex:
        return self._shards.index(shard)

    @property
    def shard_names(self) -> list[str]:
        """As the manifest has them."""
        return [shard.name for shard in self._shards.shards]

    @property
    def blocks_per_shard(self) -> list[int]:
        return [shard.samples for shard in self._shards.shards]

    def lengths(self, shard: int) -> npt.NDArray[np.int32]:
        """Tokens of each document of the shard, int32 [documents], in the order of the blocks."""
        return self.index(shard).lengths

    def document_lengths(self, shard: int, block: int) -> npt.NDArray[np.int32]:
        """Tokens of each document of one block, int32 [documents]."""
        index = self.index(shard)
        last = int(index.documents[: block + 1].sum())
        return index.lengths[last - int(index.documents[block]) : last]

    def sentence_starts(self, shard: int, block: int) -> npt.NDArray[np.int64]:
        """First token of each sentence of one block, int64 [sentences]. Raises InputError where a checksum is wrong."""
        (data,) = self._shards.read(shard, self.index(shard).places(block)[1])
        with self._checked(shard, block):
            return _sentences(data, self.document_lengths(shard, block))

    def read_document(self, shard: int, block: int, document: int) -> TokenizedDocument:
        """One document of a block, its sentences counted from its own first token."""
        tokens, sentences, words = self._cached_block(shard, block)
        ends = np.cumsum(self.document_lengths(shard, block))
        first, last = int(ends[document - 1]) if document else 0, int(ends[document])
        inside = sentences[np.searchsorted(sentences, first) : np.searchsorted(sentences, last)]
        return TokenizedDocument(tokens[first:last], inside - first, None if words is None else words[first:last])

    def read_block(
        self, shard: int, block: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        """-> tokens [tokens], first token of each sentence [sentences], where words begin [tokens] if that is known.
        InputError: a checksum is wrong, or what is there is no block of this tokenizer's."""
        first, second, *third = self._shards.read(shard, *self.index(shard).places(block))
        info = self._shards.manifest.tokenizer
        assert info is not None
        with self._checked(shard, block):
            lengths = self.document_lengths(shard, block)
            tokens = _tokens(first, lengths, info.total_size)
            return tokens, _sentences(second, lengths), _words(third[0], len(tokens)) if third else None

    def check_shard(self, shard: int) -> None:
        """Reads all of it. Raises InputError."""
        for block in range(self._shards.shards[shard].samples):
            self.read_block(shard, block)

    @contextlib.contextmanager
    def _checked(self, shard: int, block: int) -> Iterator[None]:
        try:
            yield
        except Malformed as error:
            raise InputError(
                f"{self._shards.path(shard)}, block {block}, is not as the index and the tokenizer say: {error}; "
                "prepare the data again"
            ) from error


def _tokens(data: bytes, lengths: npt.NDArray[np.int32], total_size: int) -> npt.NDArray[Any]:
    tokens = read_array(data, np.dtype(token_dtype(total_size)).str[1:])
    if len(tokens) != lengths.sum(dtype=np.int64):
        raise Malformed(f"{len(tokens)} tokens, not {lengths.sum(dtype=np.int64)}")
    if len(tokens) and int(tokens.max()) >= total_size:
        raise Malformed(f"the id {tokens.max()}, the tokenizer has {total_size}")
    return tokens


def _sentences(data: bytes, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Where each starts, in order; every document starts one."""
    found = read_array(data, "i8")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    at = np.searchsorted(found, starts)
    if not len(found) or found[0] or np.any(found[1:] < found[:-1]) or found[-1] > lengths.sum(dtype=np.int64):
        raise Malformed("its sentences do not follow each other")
    if np.any(found[np.minimum(at, len(found) - 1)] != starts):
        raise Malformed("a document does not begin a sentence")
    return found


def _words(data: bytes, tokens: int) -> npt.NDArray[np.bool_]:
    packed = read_array(data, "u1")
    if len(packed) != -(-tokens // 8):
        raise Malformed(f"word borders of {8 * len(packed)} tokens, not of {tokens}")
    return np.unpackbits(packed, count=tokens).astype(bool)

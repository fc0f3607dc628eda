"""One writer and one indexed reader for shards of any kind: plain WebDataset tars, an index beside each.

What a kind's samples consist of, and what its index keeps of them, says its Layout (text.py, images.py).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import (
    create_file,
    file_size,
    flush,
    join,
    make_folder,
    read_bytes,
    read_range,
    rename,
    sha256,
    temporary_name,
    write_atomically,
)
from data_pipeline.shards.manifest import Manifest, Shard, Split

Sample = TypeVar("Sample", contravariant=True)
Row = TypeVar("Row")


class Place(NamedTuple):
    """Where a member's content lies in the tar, in bytes."""

    offset: int
    size: int


class Index(Protocol):
    """What is known of a shard without reading its tar: a dataclass of arrays, which are what the index file holds."""

    @property
    def num_samples(self) -> int: ...

    @property
    def num_documents(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def tar_bytes(self) -> int:
        """The size of the whole tar: one that was cut short has another."""
        ...


IndexT = TypeVar("IndexT", bound=Index)


class Layout(Protocol[Sample, Row, IndexT]):
    """How samples of one kind stand in a shard. Row: what the index keeps of one sample until the shard is closed."""

    index_type: type[IndexT]

    def members(self, sample: Sample) -> Mapping[str, bytes]:
        """The sample's files in the order in which they stand in the tar, by what follows the key and a dot."""
        ...

    def row(self, sample: Sample, key: str, places: Mapping[str, Place]) -> Row: ...

    def index(self, rows: Sequence[Row]) -> IndexT: ...


class ShardWriter(Generic[Sample, Row, IndexT]):
    """Writes samples into shards ROOT/SPLIT/shard-000000.tar, each closed at `shard_bytes`, from number `first` on.

    What is written depends on the order of the samples alone. On a normal exit of the `with` block the rest is
    written; on an exception it is not.
    """

    # webdataset's own ShardWriter writes under the final name, so that a shard cut short looks like a whole one.
    def __init__(
        self, root: str, split: str, layout: Layout[Sample, Row, IndexT], shard_bytes: int, first: int = 0
    ) -> None:
        self._root, self._split, self._layout, self._shard_bytes = root, split, layout, shard_bytes
        self._number = first
        self._tar: _OpenShard[Sample, Row, IndexT] | None = None
        make_folder(join(root, split))

    def add(self, sample: Sample) -> None:
        if self._tar is None:
            self._tar = _OpenShard(shard_path(self._root, self._split, self._number), self._layout)
        self._tar.add(f"{self._split}-{self._number:06d}", sample)
        if self._tar.size >= self._shard_bytes:
            self.end_shard()

    def end_shard(self) -> None:
        """Closes the open shard, if any."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            self._number += 1

    def __enter__(self) -> ShardWriter[Sample, Row, IndexT]:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.end_shard()


class _OpenShard(Generic[Sample, Row, IndexT]):
    """A tar that is being written under a temporary name."""

    def __init__(self, path: str, layout: Layout[Sample, Row, IndexT]) -> None:
        from webdataset.writer import TarWriter  # imports torch

        self._path, self._layout, self._temporary = path, layout, temporary_name(path)
        self._file = create_file(self._temporary)
        # Without encoder members are bytes (its default pickles some); time, owner and mode are fixed, so that the
        # same samples make the same bytes.
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="", mode=0o644)
        self._rows: list[Row] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.tarstream.offset

    def add(self, prefix: str, sample: Sample) -> None:
        key = f"{prefix}-{len(self._rows):06d}"
        places = {}
        for suffix, content in self._layout.members(sample).items():
            # One member a call: TarWriter sorts those of one call by name, and an image would follow its label.
            self._tar.write({"__key__": key, suffix: content})
            places[suffix] = Place(self.size - round_up(len(content), tarfile.BLOCKSIZE), len(content))
        self._rows.append(self._layout.row(sample, key, places))

    def close(self) -> None:
        """The index comes first under its final name: a tar that is there is whole, and so is its index."""
        self._tar.close()
        flush(self._file, self._temporary)
        self._file.close()
        data = io.BytesIO()
        np.savez(data, **vars(self._layout.index(self._rows)))
        write_atomically(index_path(self._path), data.getvalue())
        rename(self._temporary, self._path)


class IndexedShards(Generic[IndexT]):
    """Reads the members of one split's shards by their offsets. A file's sha256 is checked when it is first read.

    webdataset reads a tar from its beginning; a job that resumes, and a rank that needs one sample of a thousand, must
    begin anywhere.
    """

    def __init__(self, manifest: Manifest, split: str, index_type: type[IndexT]) -> None:
        self.shards = manifest.splits[split].shards
        self.name = f"{manifest.root}, split {split},"
        self._root, self._index_type = manifest.root, index_type
        self._indexes: dict[int, IndexT] = {}
        self._verified: set[int] = set()

    def path(self, shard: int) -> str:
        return join(self._root, self.shards[shard].name)

    def index(self, shard: int) -> IndexT:
        """The index of shard number `shard`. Raises InputError where its checksum is wrong."""
        if shard not in self._indexes:
            path = join(self._root, self.shards[shard].index)
            data = _read(path)
            _require(path, self.shards[shard].index_sha256, hashlib.sha256(data).hexdigest())
            index = parse_index(data, self._index_type)
            if index is None:
                raise InputError(f"{path} is not an index that this version reads")
            self._indexes[shard] = index
        return self._indexes[shard]

    def read(self, shard: int, *places: Place) -> list[bytes]:
        """The members of a shard that lie there. Raises InputError where the shard's checksum is wrong."""
        path = self.path(shard)
        try:
            if shard not in self._verified:
                _require(path, self.shards[shard].sha256, sha256(path))
                self._verified.add(shard)
            return [read_range(path, place.offset, place.size) for place in places]
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def shard_path(root: str, split: str, number: int) -> str:
    return join(root, split, _shard_name(number))


def index_path(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.npz"


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def finished_shards(root: str, split: str, index_type: type[IndexT]) -> list[tuple[str, IndexT]]:
    """-> (tar, index) of the whole shards of `split` from number 0 on, up to the first that is missing."""
    found: list[tuple[str, IndexT]] = []
    while (size := file_size(path := shard_path(root, split, len(found)))) is not None:
        there = file_size(index_path(path)) is not None
        index = parse_index(read_bytes(index_path(path)), index_type) if there else None
        if index is None or size != index.tar_bytes:
            break
        found.append((path, index))
    return found


def describe_split(root: str, split: str, index_type: type[IndexT]) -> Split:
    """The finished shards of `split` as the manifest lists them, their checksums computed from the files."""
    shards = tuple(_describe_shard(split, path, index) for path, index in finished_shards(root, split, index_type))
    return Split(
        samples=sum(s.samples for s in shards),
        documents=sum(s.documents for s in shards),
        tokens=sum(s.tokens for s in shards),
        shards=shards,
    )


def _describe_shard(split: str, path: str, index: Index) -> Shard:
    beside = index_path(path)
    return Shard(
        name=f"{split}/{path.rpartition('/')[2]}",
        samples=index.num_samples,
        documents=index.num_documents,
        tokens=index.num_tokens,
        bytes=index.tar_bytes,
        sha256=sha256(path),
        index=f"{split}/{beside.rpartition('/')[2]}",
        index_sha256=sha256(beside),
    )


def tar_size(end: int) -> int:
    """The size of a tar whose last member's content ends at `end`: two empty blocks follow, and padding."""
    return round_up(round_up(end, tarfile.BLOCKSIZE) + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def parse_index(data: bytes, index_type: type[IndexT]) -> IndexT | None:
    """None where `data` is not an index of that type."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return index_type(**{name: arrays[name] for name in arrays.files})
    except (ValueError, TypeError, OSError):
        return None


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _read(path: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _require(path: str, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{path} differs from the manifest: sha256 expected {expected}, found {found}")

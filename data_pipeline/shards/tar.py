"""One writer and one indexed reader for shards of any kind: plain WebDataset tars, an index beside each.

What a kind's samples consist of, and what its index keeps of them, says its Layout (text.py, images.py).
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import IO, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import (
    create_file,
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
from data_pipeline.shards.arrays import Malformed, read_arrays, write_arrays
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.record import add_to_record, differs, index_name, shard_name

Sample = TypeVar("Sample", contravariant=True)
Row = TypeVar("Row")
MAX_INDEX_BYTES = 1 << 30


class Place(NamedTuple):
    """Where a member's content lies in the tar, in bytes."""

    offset: int
    size: int


class Index(Protocol):
    """What is known of a shard without reading its tar: a dataclass of arrays, which are what the index file holds.

    KINDS: the name of each array -> its type, as arrays.read_array takes it. MOST_BYTES: of a document at most, and of
    a sample.
    """

    KINDS: ClassVar[Mapping[str, str]]
    MOST_BYTES: ClassVar[int]

    @property
    def num_samples(self) -> int: ...

    @property
    def num_documents(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def tar_bytes(self) -> int:
        """The size of the whole tar."""
        ...

    def problem(self, shard: Shard, manifest: Manifest) -> str | None:
        """What of it is not as in a shard that the manifest describes like this; None where all is."""
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
            self._tar = _OpenShard(self._root, f"{self._split}/{shard_name(self._number)}", self._layout)
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


class _SummedFile:
    """A file that is written from beginning to end; `digest` is of what was to be written, whatever becomes of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


class _OpenShard(Generic[Sample, Row, IndexT]):
    """A tar that is being written under a temporary name. name: below `root`."""

    def __init__(self, root: str, name: str, layout: Layout[Sample, Row, IndexT]) -> None:
        from webdataset.writer import TarWriter  # imports torch

        self._root, self._name, self._layout = root, name, layout
        self._path = join(root, name)
        self._temporary = temporary_name(self._path)
        self._file = create_file(self._temporary)
        self._summed = _SummedFile(self._file)
        # Without encoder members are bytes (its default pickles some); time, owner and mode are fixed, so that the
        # same samples make the same bytes.
        self._tar = TarWriter(self._summed, encoder=False, mtime=0, user="", group="", mode=0o644)
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
        """The tar gets its name last: one that is there is whole, its index is there, and its sums are noted."""
        self._tar.close()
        flush(self._file, self._temporary)
        self._file.close()
        index = self._layout.index(self._rows)
        assert self._summed.size == index.tar_bytes
        data = write_arrays(vars(index))
        write_atomically(join(self._root, index_name(self._name)), data)
        add_to_record(self._root, self._described(index, hashlib.sha256(data).hexdigest()))
        rename(self._temporary, self._path)

    def _described(self, index: IndexT, index_sha256: str) -> Shard:
        return Shard(
            name=self._name,
            samples=index.num_samples,
            documents=index.num_documents,
            tokens=index.num_tokens,
            bytes=index.tar_bytes,
            sha256=self._summed.digest.hexdigest(),
            index=index_name(self._name),
            index_sha256=index_sha256,
        )


class IndexedShards(Generic[IndexT]):
    """Reads the members of one split's shards by their offsets. A file's sha256 is checked when it is first read.

    webdataset reads a tar from its beginning; a job that resumes, and a rank that needs one sample of a thousand, must
    begin anywhere.
    """

    def __init__(self, manifest: Manifest, split: str, index_type: type[IndexT]) -> None:
        self.shards = manifest.splits[split].shards
        self.manifest = manifest
        self.name = f"{manifest.root}, split {split},"
        self._index_type = index_type
        self._indexes: dict[int, IndexT] = {}
        self._verified: set[int] = set()

    def path(self, shard: int) -> str:
        return join(self.manifest.root, self.shards[shard].name)

    def index(self, shard: int) -> IndexT:
        """The index of shard number `shard`. Raises InputError where its checksum or its form is wrong."""
        if shard not in self._indexes:
            self._indexes[shard] = self._read_index(self.shards[shard])
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

    def _read_index(self, shard: Shard) -> IndexT:
        path = join(self.manifest.root, shard.index)
        # The manifest's numbers fit the tar's size: it cannot be had to ask for more than that of memory.
        limit = (1 << 16) + self._index_type.MOST_BYTES * (shard.samples + shard.documents)
        try:
            data = read_bytes(path, min(limit, MAX_INDEX_BYTES))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        _require(path, shard.index_sha256, hashlib.sha256(data).hexdigest())
        try:
            index = self._index_type(**read_arrays(data, self._index_type.KINDS))
        except Malformed as error:
            raise InputError(f"{path} is not an index that this version reads: {error}") from error
        problem = index.problem(shard, self.manifest)
        if problem is not None:
            raise InputError(f"{path} does not fit {shard.name}: {problem}; prepare the data again")
        return index


def tar_size(end: int) -> int:
    """The size of a tar whose last member's content ends at `end`: two empty blocks follow, and padding."""
    return round_up(round_up(end, tarfile.BLOCKSIZE) + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def members_problem(offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], tar_bytes: int) -> str | None:
    """offsets, sizes: int64 [members], of contents in their order -> what is wrong with these; None where they lie in
    the tar one after the other, a header before each."""
    if sizes.min() < 0 or sizes.max() > tar_bytes or offsets.min() < 0 or offsets.max() > tar_bytes:
        return "a member lies beyond the end of the tar"
    ends = offsets + sizes
    if ends.max() > tar_bytes:
        return "a member lies beyond the end of the tar"
    if np.any(offsets % tarfile.BLOCKSIZE) or np.any(offsets - tarfile.BLOCKSIZE < np.append(0, ends[:-1])):
        return "its members overlap"
    return None


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _require(path: str, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{differs(path, expected, found)}; `pretrain-data verify` finds all that are damaged")

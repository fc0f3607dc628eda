"""Shards of images: plain WebDataset tars of the original files, an index beside each, and their reader.

A sample of a tar is one image: `KEY.jpg` or `KEY.png`, the bytes as they were found, and `KEY.cls`, the number of its
class in the manifest. Every length in tokens is 0 in the manifest: an image's patches are the model's business.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import flush, open_file, sha256, write_atomically
from data_pipeline.shards.manifest import Manifest, Shard, Split
from data_pipeline.shards.text import index_path, shard_path

MAX_PIXELS = 2**26
MAX_IMAGE_BYTES = 2**26
IMAGES_PER_BLOCK = 64  # what the stream shuffles as one: a window of 64 blocks holds 4096 images
_SUFFIX = {"JPEG": "jpg", "PNG": "png"}
_SIXTEEN_BITS = ("I;16", "I")  # a gray PNG's mode in Pillow; "I" in older ones
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
_TAR_BLOCK, _TAR_RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


class BrokenImage(Exception):
    """Why bytes are not an image that is accepted."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of a JPEG or PNG file, the number of its class, and where it lies (shard and member)."""

    data: bytes
    label: int
    name: str


def decode(data: bytes) -> Image.Image:
    """The image, fully read, in the mode of its file. Raises BrokenImage."""
    if len(data) > MAX_IMAGE_BYTES:
        raise BrokenImage(f"{len(data)} bytes, more than {MAX_IMAGE_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is below the size that Pillow warns of
            image = Image.open(io.BytesIO(data), formats=tuple(_SUFFIX))
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            image.load()
    except UnidentifiedImageError as error:  # its own text holds an address in memory
        raise BrokenImage("neither a JPEG nor a PNG, by its content" if data else "an empty file") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:  # Pillow's readers raise any of these on damaged files
        raise BrokenImage(str(error) or type(error).__name__) from error
    return image


def decode_rgb(image: EncodedImage) -> Image.Image:
    """Three channels of 8 bits, upright. Raises InputError that names shard and image."""
    try:
        return _rgb(_upright(decode(image.data)))
    except BrokenImage as error:
        raise InputError(f"{image.name}: a broken image ({error}); prepare the data again") from error


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. Viewers ignore EXIF that cannot be read, and so does Pillow when it opens a file.
    ImageOps.exif_transpose would write the rest of it anew, and fail where that is odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except (SyntaxError, ValueError, TypeError, struct.error):
            return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion cuts 16 bits off at 255 and so makes nearly everything white."""
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    return image.convert("RGB")


def suffix_of(image: Image.Image) -> str:
    """jpg or png, by the content: there are files named otherwise."""
    return _SUFFIX[str(image.format)]


@dataclass(frozen=True)
class ImageIndex:
    """Where each image lies in the tar (bytes), its label, and its member's name."""

    offset: npt.NDArray[np.int64]  # [images]
    bytes: npt.NDArray[np.int64]  # [images]
    labels: npt.NDArray[np.int32]  # [images]
    names: npt.NDArray[np.str_]  # [images]

    @property
    def tar_bytes(self) -> int:
        """The size of the tar: after the last image come its label, two empty blocks and the padding."""
        end = _round_up(int(self.offset[-1] + self.bytes[-1]), _TAR_BLOCK) + 2 * _TAR_BLOCK
        return _round_up(end + 2 * _TAR_BLOCK, _TAR_RECORD)


class ImageShardWriter:
    """Writes images into shards `DIR/SPLIT/shard-000000.tar`, closed at `shard_bytes`, from number `first` on.

    What is written depends on the order of the images alone. Leaving the `with` block in order writes what
    remains; leaving it by an error does not.
    """

    def __init__(self, root: Path, split: str, shard_bytes: int, first: int = 0) -> None:
        self._root, self._split, self._shard_bytes, self._number = root, split, shard_bytes, first
        self._tar: _OpenShard | None = None
        (root / split).mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, suffix: str, label: int) -> None:
        if self._tar is None:
            self._tar = _OpenShard(shard_path(self._root, self._split, self._number))
        self._tar.add(f"{self._split}-{self._number:06d}", data, suffix, label)
        if self._tar.size >= self._shard_bytes:
            self._end_shard()

    def __enter__(self) -> ImageShardWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None and self._tar is not None:
            self._end_shard()

    def _end_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._tar = None
        self._number += 1


class _OpenShard:
    """A tar that is being written under a temporary name."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._file = open_file(self._temporary, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._images: list[tuple[int, int, int, str]] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.offset

    def add(self, prefix: str, data: bytes, suffix: str, label: int) -> None:
        key = f"{prefix}-{len(self._images):06d}"
        self._images.append((self._tar.offset + _TAR_BLOCK, len(data), label, f"{key}.{suffix}"))  # after the header
        self._member(f"{key}.{suffix}", data)
        self._member(f"{key}.cls", str(label).encode())

    def close(self) -> None:
        """The index comes first under its final name: a tar that is there is whole, and so is its index."""
        self._tar.close()
        flush(self._file, self._temporary)
        self._file.close()
        offset, sizes, labels, names = zip(*self._images, strict=True)
        data = io.BytesIO()
        np.savez(
            data,
            offset=np.array(offset, np.int64),
            bytes=np.array(sizes, np.int64),
            labels=np.array(labels, np.int32),
            names=np.array(names),
        )
        write_atomically(index_path(self._path), data.getvalue())
        os.replace(self._temporary, self._path)

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # its time, owner and group are 0 unless set
        member.size, member.mode = len(data), 0o644
        self._tar.addfile(member, io.BytesIO(data))


def finished_image_shards(root: Path, split: str) -> list[tuple[Path, ImageIndex]]:
    """The whole shards of `split` from number 0 on, up to the first that is missing."""
    found: list[tuple[Path, ImageIndex]] = []
    while (path := shard_path(root, split, len(found))).is_file():
        index = _parse_index(index_path(path).read_bytes()) if index_path(path).is_file() else None
        if index is None or path.stat().st_size != index.tar_bytes:
            break
        found.append((path, index))
    return found


def describe_image_split(root: Path, split: str) -> Split:
    """The finished shards of `split` as the manifest lists them, their checksums computed from the files."""
    shards = tuple(_describe_shard(root, path, index) for path, index in finished_image_shards(root, split))
    images = sum(s.samples for s in shards)
    return Split(samples=images, documents=images, tokens=0, shards=shards)


def _describe_shard(root: Path, path: Path, index: ImageIndex) -> Shard:
    beside = index_path(path)
    return Shard(
        name=path.relative_to(root).as_posix(),
        samples=len(index.labels),
        documents=len(index.labels),
        tokens=0,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        index=beside.relative_to(root).as_posix(),
        index_sha256=sha256(beside),
    )


class ImageReader:
    """Reads the images of one split by their offsets. A file's sha256 is checked when it is first read.

    A block is IMAGES_PER_BLOCK images that follow each other in a shard, a document is one image of length 1.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._root, self.shards = Path(manifest.root), manifest.splits[split].shards
        self._indexes: dict[int, ImageIndex] = {}
        self._verified: set[int] = set()

    @property
    def blocks_per_shard(self) -> list[int]:
        return [-(-shard.samples // IMAGES_PER_BLOCK) for shard in self.shards]

    def document_lengths(self, shard: int, block: int) -> npt.NDArray[np.int32]:
        """Ones, int32 [images of the block]."""
        rest = self.shards[shard].samples - block * IMAGES_PER_BLOCK
        return np.ones(min(IMAGES_PER_BLOCK, rest), np.int32)

    def read_document(self, shard: int, block: int, document: int) -> EncodedImage:
        """One image of a block. Raises InputError where a checksum is wrong."""
        index, number = self.index(shard), block * IMAGES_PER_BLOCK + document
        path = self._root / self.shards[shard].name
        if shard not in self._verified:
            _require(path, self.shards[shard].sha256, sha256(path))
            self._verified.add(shard)
        with open_file(path) as file:
            file.seek(int(index.offset[number]))
            data = file.read(min(int(index.bytes[number]), MAX_IMAGE_BYTES + 1))
        return EncodedImage(data, int(index.labels[number]), f"{path}: {index.names[number]}")

    def index(self, shard: int) -> ImageIndex:
        """The index of shard number `shard`. Raises InputError where its checksum is wrong."""
        if shard not in self._indexes:
            path = self._root / self.shards[shard].index
            data = path.read_bytes()
            _require(path, self.shards[shard].index_sha256, hashlib.sha256(data).hexdigest())
            index = _parse_index(data)
            if index is None:
                raise InputError(f"{path} is not an index of this version")
            self._indexes[shard] = index
        return self._indexes[shard]


def _parse_index(data: bytes) -> ImageIndex | None:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
            return ImageIndex(**values)
    except (ValueError, TypeError, OSError):
        return None


def _require(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{path} differs from the manifest: sha256 expected {expected}, found {found}")


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

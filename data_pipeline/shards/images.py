"""Shards of images. A sample of a tar is one image: its members are

- `KEY.jpg` or `KEY.png`: the bytes as they were found;
- `KEY.cls`: the number of its class in the manifest.

Every length in tokens is 0 in the manifest: how an image is cut into patches is up to the model.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.image_codec import MAX_IMAGE_BYTES, EncodedImage
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.tar import IndexedShards, Place, members_problem, round_up, tar_size

_MAX_NAME = 100  # characters of a member's name, as in train-000000-000000.jpg
IMAGES_PER_BLOCK = 64  # what the stream shuffles as one: a window of 64 blocks holds 4096 images


class LabeledImage(NamedTuple):
    """The bytes of an image file, jpg or png, and the number of its class."""

    data: bytes
    suffix: str
    label: int


@dataclass(frozen=True)
class ImageIndex:
    """Where each image lies in the tar (bytes), its label, and its member's name."""

    KINDS: ClassVar[Mapping[str, str]] = {"offset": "i8", "bytes": "i8", "labels": "i4", "names": "U"}
    MOST_BYTES: ClassVar[int] = 20 + 4 * _MAX_NAME

    offset: npt.NDArray[np.int64]  # [images]
    bytes: npt.NDArray[np.int64]  # [images]
    labels: npt.NDArray[np.int32]  # [images]
    names: npt.NDArray[np.str_]  # [images]

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @property
    def num_documents(self) -> int:
        return len(self.labels)

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def tar_bytes(self) -> int:
        """The last image's label follows it: a header, and fewer bytes than a block."""
        end = round_up(int(self.offset[-1] + self.bytes[-1]), tarfile.BLOCKSIZE)
        return tar_size(end + 2 * tarfile.BLOCKSIZE)

    def problem(self, shard: Shard, manifest: Manifest) -> str | None:
        """See Index."""
        if {len(array) for array in (self.offset, self.bytes, self.labels, self.names)} != {shard.samples}:
            return f"it does not describe {shard.samples} images"
        if self.labels.min() < 0 or self.labels.max() >= len(manifest.classes):
            return (
                f"labels are from {self.labels.min()} to {self.labels.max()}, there are {len(manifest.classes)} classes"
            )
        characters = self.names.view(np.uint32)  # looked at as numbers: not each is a character
        if np.any((characters < 32) & (characters > 0)) or characters.max() > 126:
            return "a name is not printable"
        return members_problem(self.offset, self.bytes, shard.bytes) or (
            None if self.tar_bytes == shard.bytes else "its last member does not end where the tar does"
        )


class ImageRow(NamedTuple):
    place: Place
    label: int
    name: str


class ImageLayout:
    """How images stand in a shard."""

    index_type = ImageIndex

    def members(self, image: LabeledImage) -> Mapping[str, bytes]:
        return {image.suffix: image.data, "cls": str(image.label).encode()}

    def row(self, image: LabeledImage, key: str, places: Mapping[str, Place]) -> ImageRow:
        return ImageRow(places[image.suffix], image.label, f"{key}.{image.suffix}")

    def index(self, rows: Sequence[ImageRow]) -> ImageIndex:
        return ImageIndex(
            np.array([row.place.offset for row in rows], np.int64),
            np.array([row.place.size for row in rows], np.int64),
            np.array([row.label for row in rows], np.int32),
            np.array([row.name for row in rows]),
        )


class ImageReader:
    """Reads the images of one split.

    A block is IMAGES_PER_BLOCK images that follow each other in a shard, a document is one image of length 1.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._shards = IndexedShards(manifest, split, ImageIndex)

    @property
    def name(self) -> str:
        return self._shards.name

    def keep_blocks(self, count: int) -> None:
        """Nothing: images are read one by one."""

    @property
    def shard_names(self) -> list[str]:
        """As the manifest has them."""
        return [shard.name for shard in self._shards.shards]

    @property
    def blocks_per_shard(self) -> list[int]:
        return [-(-shard.samples // IMAGES_PER_BLOCK) for shard in self._shards.shards]

    def document_lengths(self, shard: int, block: int) -> npt.NDArray[np.int32]:
        """Ones, int32 [images of the block]."""
        rest = self._shards.shards[shard].samples - block * IMAGES_PER_BLOCK
        return np.ones(min(IMAGES_PER_BLOCK, rest), np.int32)

    def sentence_starts(self, shard: int, block: int) -> npt.NDArray[np.int64]:
        """Each image is one sentence."""
        return np.arange(len(self.document_lengths(shard, block)))

    def read_document(self, shard: int, block: int, document: int) -> EncodedImage:
        """One image of a block. Raises InputError where a checksum is wrong."""
        index, number = self.index(shard), block * IMAGES_PER_BLOCK + document
        size = min(int(index.bytes[number]), MAX_IMAGE_BYTES + 1)  # decode() refuses what is larger
        (data,) = self._shards.read(shard, Place(int(index.offset[number]), size))
        return EncodedImage(data, int(index.labels[number]), f"{self._shards.path(shard)}: {index.names[number]}")

    def index(self, shard: int) -> ImageIndex:
        return self._shards.index(shard)

    def check_shard(self, shard: int) -> None:
        """Reads its index and the whole file, without decoding images. Raises InputError."""
        self._shards.index(shard)
        self._shards.read(shard)

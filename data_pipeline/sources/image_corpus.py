"""Images as `pretrain-data` prepares them: the original files with the numbers of their classes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from data_pipeline.common.errors import InputError
from data_pipeline.common.progress import PassProgress, counted
from data_pipeline.common.workers import end_with_parent
from data_pipeline.prepare_config import PrepareConfig
from data_pipeline.shards.continuation import Scan
from data_pipeline.shards.image_codec import MAX_IMAGE_BYTES, BrokenImage, decode, suffix_of
from data_pipeline.shards.images import ImageIndex, ImageLayout, ImageRow, LabeledImage
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.tar import ShardWriter
from data_pipeline.sources.corpus import Vocabulary
from data_pipeline.sources.find import LeftOut, reading
from data_pipeline.sources.images import ImagesConfig, LabeledFile, classes_of, labeled_files
from data_pipeline.sources.scan import listing_hash, split_of

_FILES_PER_TASK = 32


class Examined(NamedTuple):
    """One image: its content's digest [16 bytes], size and kind, or what is wrong with it."""

    file: LabeledFile
    digest: bytes
    size: int
    suffix: str
    problem: str | None = None

    @property
    def split_hash(self) -> int:
        """Below 2^64."""
        return int.from_bytes(self.digest[:8], "big")


class ImageCorpus:
    """See Corpus. Images stand in the shards by the hash of their content, so that neighbors are of any class."""

    kind = "images"
    index_type = ImageIndex

    def __init__(self, config: PrepareConfig) -> None:
        assert isinstance(config.corpus, ImagesConfig)
        self._config, self._max_bad = config, config.corpus.max_bad_images
        self._left_out = LeftOut()
        self._files = files = labeled_files(config.corpus, self._left_out, skip=os.path.realpath(config.output))
        self._classes = classes_of([file.label for file in files])
        self._examined: list[Examined] = []
        self.settings = {
            "corpus.kind": self.kind,
            "valid_fraction": config.valid_fraction,
            "seed": config.seed,
            "shard_bytes": config.shard_bytes,
            "min_shards": config.min_shards,
        }
        self.listing = _listing(files)

    def needs_scan(self, root: str) -> bool:
        """The order of the images is known only from their content."""
        return True

    def scan(self) -> Scan:
        self._examined = self._examine_all()
        if not self._examined:
            raise InputError("corpus.inputs: every image is broken")
        smallest = self._examined[0].split_hash
        valid = sum(split_of(e.split_hash, smallest, self._config.valid_fraction) == "valid" for e in self._examined)
        if valid == len(self._examined):
            raise InputError(f"the corpus has {valid} image(s), all in validation, which leaves none to train on")
        content, size = hashlib.sha256(), sum(e.size for e in self._examined)
        for entry in self._examined:
            content.update(entry.digest + entry.file.label.encode() + b"\0")
        if str(self._left_out):
            print(self._left_out)
        classes = counted(len(self._classes), "class", "classes")
        print(f"{counted(len(self._examined), 'image')} of {classes}, {size / 1e6:.1f} MB")
        return Scan(len(self._examined), size, valid, smallest, content.hexdigest())

    def vocabulary(self, root: str) -> Vocabulary:
        return Vocabulary(classes=self._classes)

    def writer(self, root: str, split: str, first: int) -> ShardWriter[LabeledImage, ImageRow, ImageIndex]:
        return ShardWriter(root, split, ImageLayout(), self._config.shard_bytes, first)

    def documents(self, root: str, scan: Scan, done: Mapping[str, int]) -> Iterator[tuple[str, LabeledImage]]:
        to_skip = dict(done)
        numbers = {label: number for number, label in enumerate(self._classes)}
        with PassProgress("writing shards", scan.bytes) as progress:
            for entry in self._examined:
                progress.add(entry.size)
                split = split_of(entry.split_hash, scan.smallest_hash, self._config.valid_fraction)
                if to_skip[split]:
                    to_skip[split] -= 1
                else:
                    label = numbers[entry.file.label]
                    yield split, LabeledImage(self._read_again(entry), entry.suffix, label)

    def summary(self, manifest: Manifest, scan: Scan) -> str:
        lines = [
            f"{name:>6}: {counted(split.samples, 'image')}, {counted(len(split.shards), 'shard')}"
            for name, split in manifest.splits.items()
        ]
        return "\n".join([*lines, counted(len(manifest.classes), "class", "classes")])

    def _examine_all(self) -> list[Examined]:
        """The whole images, in the order of the shards."""
        good, problems = [], []
        with PassProgress("reading images", total_bytes=None) as progress:
            for found in _examined(self._files, self._config.seed, self._config.num_workers):
                progress.add(found.size)
                if found.problem is None:
                    good.append(found)
                    continue
                problems.append(found.problem)
                if len(problems) > self._max_bad:
                    named = "\n".join(problems)
                    raise InputError(
                        f"{named}\n{len(problems)} broken images, more than corpus.max_bad_images={self._max_bad}"
                    )
        if problems:
            print(f"warning: {len(problems)} broken images skipped:\n  " + "\n  ".join(problems))
        return sorted(good, key=lambda e: (e.digest, e.file.path, e.file.member.offset if e.file.member else 0))

    def _read_again(self, entry: Examined) -> bytes:
        with reading(entry.file.path):
            data = _read(entry.file)
        if _digest(data, self._config.seed) != entry.digest:
            raise InputError(f"{entry.file} changed while it was read; remove {self._config.output} and start again")
        return data


def examine(file: LabeledFile, seed: int) -> Examined:
    """Reads and decodes one image, in a worker."""
    try:
        data = _read(file)
        digest = _digest(data, seed)
        return Examined(file, digest, len(data), suffix_of(decode(data)))
    except (BrokenImage, OSError) as error:
        return Examined(file, b"", 0, "", f"{file}: {error}")


def _examined(files: list[LabeledFile], seed: int, num_workers: int) -> Iterator[Examined]:
    """In the order of `files`. With at most one worker, the calling process does it itself."""
    seeds: Iterable[int] = [seed] * len(files)
    if num_workers <= 1:
        yield from map(examine, files, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool:
        yield from pool.map(examine, files, seeds, chunksize=_FILES_PER_TASK)


def _read(file: LabeledFile) -> bytes:
    """One byte more than is accepted, where there are that many."""
    with open(file.path, "rb") if file.member is None else file.member.open() as content:
        return content.read(MAX_IMAGE_BYTES + 1)


def _digest(data: bytes, seed: int) -> bytes:
    """The keyed hash that decides split and order: equal images have equal ones, wherever they stand."""
    return hashlib.blake2b(data, key=str(seed).encode(), digest_size=16).digest()


def _listing(files: list[LabeledFile]) -> str:
    """Hashes paths, sizes, times and labels."""
    values = [listing_hash(list(dict.fromkeys(file.path for file in files))), [file.label for file in files]]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()

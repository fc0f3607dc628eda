"""`pretrain-data corpus=images`: image files -> shards and manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.common.errors import InputError
from data_pipeline.common.progress import PassProgress
from data_pipeline.shards.continuation import (
    Continuation,
    check_corpus,
    check_settings,
    listing_hash,
    load_continuation,
    locked,
)
from data_pipeline.shards.images import (
    MAX_IMAGE_BYTES,
    BrokenImage,
    ImageShardWriter,
    decode,
    describe_image_split,
    finished_image_shards,
    suffix_of,
)
from data_pipeline.shards.manifest import SPLITS, Manifest, check_files, load_manifest, save_manifest
from data_pipeline.shards.text import remove_temporaries
from data_pipeline.sources.images import ImagesConfig, LabeledFile, classes_of, labeled_files
from data_pipeline.sources.scan import Scan, split_of

if TYPE_CHECKING:
    from data_pipeline.prepare import PrepareConfig

_FILES_PER_TASK = 32


class Examined(NamedTuple):
    """One file: its content's digest [16 bytes], size and kind, or the fault that it has."""

    path: str
    digest: bytes
    size: int
    suffix: str
    fault: str | None = None

    @property
    def split_hash(self) -> int:
        """Below 2^64."""
        return int.from_bytes(self.digest[:8], "big")


def prepare_images(config: PrepareConfig) -> None:
    """Writes `config.output`, or continues what was begun there. After an InputError nothing was replaced."""
    started, root, corpus = time.monotonic(), Path(config.output), config.corpus
    assert isinstance(corpus, ImagesConfig)
    files = labeled_files(corpus)
    settings = {
        "corpus.kind": "images",
        "valid_fraction": config.valid_fraction,
        "seed": config.seed,
        "shard_bytes": config.shard_bytes,
    }
    plan, listing = load_continuation(root), _listing(files)
    if plan is not None:
        check_settings(root, plan, settings)
        if plan.listing == listing and _is_complete(root):
            print(f"{root} is already complete")
            return
    examined = _examine_all(files, corpus.max_bad_images, config)
    labels = dict(files)
    classes = classes_of([file.label for file in files])
    scan = _scan(examined, labels, config.valid_fraction)
    if plan is not None:
        check_corpus(root, plan, scan)
    with locked(root):
        Continuation(settings, listing, scan).save(root)
        numbers = {path: classes.index(label) for path, label in labels.items()}
        _write_shards(config, examined, numbers, scan)
        splits = {split: describe_image_split(root, split) for split in SPLITS}
        manifest = Manifest(str(root), "images", None, config.seed, config.valid_fraction, splits, classes)
        save_manifest(manifest)
    print(_summary(manifest, time.monotonic() - started))


def examine(path: str, seed: int) -> Examined:
    """Reads and decodes one file, in a worker."""
    try:
        data = _read(path)
        digest = _digest(data, seed)
        return Examined(path, digest, len(data), suffix_of(decode(data)))
    except (BrokenImage, OSError) as error:
        return Examined(path, b"", 0, "", f"{path}: {error}")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_IMAGE_BYTES + 1)


def _digest(data: bytes, seed: int) -> bytes:
    """The keyed hash that decides split and order: equal images have equal ones, wherever they stand."""
    return hashlib.blake2b(data, key=str(seed).encode(), digest_size=16).digest()


def _examine_all(files: list[LabeledFile], max_bad: int, config: PrepareConfig) -> list[Examined]:
    """What stands in the shards, in order: by hash, so that neighbors are of any class."""
    good, faults = [], []
    with PassProgress("reading images", total_bytes=None) as progress:
        for found in _examined([file.path for file in files], config.seed, config.num_workers):
            progress.add(found.size)
            if found.fault is None:
                good.append(found)
                continue
            faults.append(found.fault)
            if len(faults) > max_bad:
                raise InputError(
                    "\n".join(faults) + f"\n{len(faults)} broken images, and corpus.max_bad_images={max_bad}"
                )
    if faults:
        print(f"warning: {len(faults)} broken images left out:\n  " + "\n  ".join(faults))
    return sorted(good, key=lambda e: (e.digest, e.path))


def _examined(paths: list[str], seed: int, num_workers: int) -> Iterator[Examined]:
    """In the order of `paths`. Up to one worker, the calling process does it itself."""
    seeds: Iterable[int] = [seed] * len(paths)
    if num_workers <= 1:
        yield from map(examine, paths, seeds)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(examine, paths, seeds, chunksize=_FILES_PER_TASK)


def _scan(examined: list[Examined], labels: dict[str, str], valid_fraction: float) -> Scan:
    """Raises InputError where the images don't give two splits."""
    if not examined:
        raise InputError("corpus.inputs: no image is whole")
    smallest = examined[0].split_hash
    valid = sum(split_of(e.split_hash, smallest, valid_fraction) == "valid" for e in examined)
    if valid == len(examined):
        raise InputError(f"the corpus has {valid} image(s), all of them in validation: none is left to train on")
    content = hashlib.sha256()
    for entry in examined:
        content.update(entry.digest + labels[entry.path].encode() + b"\0")
    print(
        f"{len(examined)} images of {len(set(labels.values()))} classes, {sum(e.size for e in examined) / 1e6:.1f} MB"
    )
    return Scan(len(examined), sum(e.size for e in examined), valid, smallest, content.hexdigest())


def _write_shards(config: PrepareConfig, examined: list[Examined], numbers: dict[str, int], scan: Scan) -> None:
    """Copies every image but those in finished shards."""
    root = Path(config.output)
    finished = {split: finished_image_shards(root, split) for split in SPLITS}
    to_skip = {split: sum(len(index.labels) for _, index in finished[split]) for split in SPLITS}
    remove_temporaries(root)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(PassProgress("writing shards", scan.bytes))
        writers = {
            split: stack.enter_context(ImageShardWriter(root, split, config.shard_bytes, len(finished[split])))
            for split in SPLITS
        }
        for entry in examined:
            progress.add(entry.size)
            split = split_of(entry.split_hash, scan.smallest_hash, config.valid_fraction)
            if to_skip[split]:
                to_skip[split] -= 1
            else:
                writers[split].add(_read_again(entry, config), entry.suffix, numbers[entry.path])


def _read_again(entry: Examined, config: PrepareConfig) -> bytes:
    data = _read(entry.path)
    if _digest(data, config.seed) != entry.digest:
        raise InputError(f"{entry.path} changed while it was read; remove {config.output} and start again")
    return data


def _listing(files: list[LabeledFile]) -> str:
    """Hashes paths, sizes, times and labels."""
    values = [listing_hash([file.path for file in files]), [file.label for file in files]]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _is_complete(root: Path) -> bool:
    if not (root / "manifest.json").is_file():
        return False
    try:
        check_files(load_manifest(root))
    except InputError as error:
        print(f"{error}\nthe missing shards are written again")
        return False
    return True


def _summary(manifest: Manifest, seconds: float) -> str:
    lines: list[Any] = [
        f"{name:>6}: {split.samples} images, {len(split.shards)} shards" for name, split in manifest.splits.items()
    ]
    return "\n".join([*lines, f"{len(manifest.classes)} classes, {seconds:.1f} s; written to {manifest.root}"])

"""manifest.json: the shards of each split, their sizes and checksums, the last file that pretrain-data writes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, file_size, is_file, join
from data_pipeline.common.json_files import read_json, what_is_broken, write_json

FORMAT = 1
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Shard:
    """One line of the manifest; `samples` counts blocks, `bytes` is the tar's size."""

    name: str
    samples: int
    documents: int
    tokens: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


@dataclass(frozen=True)
class Split:
    samples: int
    documents: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class TokenizerInfo:
    fingerprint: str
    vocab_size: int
    total_size: int


@dataclass(frozen=True)
class Manifest:
    """What DIR/manifest.json says.

    root: DIR, a path or URL. kind: text, with a tokenizer, or images, with classes.
    """

    root: str
    kind: str
    tokenizer: TokenizerInfo | None
    seed: int
    valid_fraction: float
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 of what all shards hold."""
        sums = [(name, shard.sha256) for name in sorted(self.splits) for shard in self.splits[name].shards]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def save_manifest(manifest: Manifest) -> None:
    """Writes `manifest.root`/manifest.json, the last file of a data set."""
    values = {"format": FORMAT, **asdict(manifest)}
    del values["root"]
    write_json(join(manifest.root, "manifest.json"), values)


def load_manifest(directory: Location) -> Manifest:
    """Reads DIR/manifest.json. Raises InputError where it is missing, broken or of a newer format."""
    path = join(directory, "manifest.json")
    values = read_json(
        path,
        hint=f"{directory} contains no prepared data, or pretrain-data was stopped before it finished "
        "(run the same command again to continue)",
    )
    found = values.get("format")
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}, this version reads format {FORMAT}")
    try:
        return _parse_manifest(os.fspath(directory), values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is broken: {what_is_broken(error)}") from error


def _parse_manifest(root: str, values: dict[str, Any]) -> Manifest:
    if sorted(values["splits"]) != sorted(SPLITS):
        raise TypeError(f"splits are {', '.join(sorted(values['splits']))}, not {', '.join(SPLITS)}")
    splits = {
        name: Split(
            samples=s["samples"],
            documents=s["documents"],
            tokens=s["tokens"],
            shards=tuple(Shard(**shard) for shard in s["shards"]),
        )
        for name, s in values["splits"].items()
    }
    return Manifest(
        root,
        values["kind"],
        TokenizerInfo(**values["tokenizer"]) if values["tokenizer"] is not None else None,
        values["seed"],
        values["valid_fraction"],
        splits,
        tuple(values.get("classes", ())),
    )


def check_files(manifest: Manifest) -> None:
    """Raises InputError that names the shards which are missing or of another size than the manifest says."""
    problems = []
    for shard in (s for split in manifest.splits.values() for s in split.shards):
        tar, index = join(manifest.root, shard.name), join(manifest.root, shard.index)
        size = file_size(tar)
        if size is None:
            problems.append(f"{tar} is missing ({shard.bytes} bytes expected)")
        elif size != shard.bytes:
            problems.append(f"{tar} has {size} bytes, the manifest says {shard.bytes}")
        if not is_file(index):
            problems.append(f"{index} is missing")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise InputError("\n".join(problems[:10] + more))

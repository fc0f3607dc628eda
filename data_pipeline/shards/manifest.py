"""manifest.json: the shards of each split, their sizes and checksums, the last file that pretrain-data writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import Field, StringConstraints

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import Location, file_size, is_file, is_local, join
from data_pipeline.common.json_files import read_json, typed, write_json
from data_pipeline.tokenizers.special_tokens import MAX_VOCABULARY

FORMAT = 1
SPLITS = ("train", "valid")
_REPORTED = 10

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
# SPLIT/FILE: nothing above the folder, nothing hidden, nothing that a terminal obeys
TarName = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.tar$")]
IndexName = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.npz$")]


@dataclass(frozen=True)
class Shard:
    """One line of the manifest; `samples` counts blocks, `bytes` is the tar's size."""

    name: TarName
    samples: Count
    documents: Count
    tokens: Count
    bytes: Count
    sha256: Sha256
    index: IndexName
    index_sha256: Sha256


@dataclass(frozen=True)
class Split:
    samples: Count
    documents: Count
    tokens: Count
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Split:
        """The split that these shards make up."""
        samples, documents = sum(s.samples for s in shards), sum(s.documents for s in shards)
        return cls(samples, documents, sum(s.tokens for s in shards), tuple(shards))


@dataclass(frozen=True)
class TokenizerInfo:
    """words: the segmenter whose word borders the shards have; empty where they have none. similar: sha256 of the
    tokenizer's table of similar words; empty where there is none. Empty ones are not written."""

    fingerprint: Annotated[str, StringConstraints(max_length=64)]
    vocab_size: Annotated[int, Field(gt=0, le=MAX_VOCABULARY)]
    total_size: Annotated[int, Field(gt=0, le=MAX_VOCABULARY)]
    words: Annotated[str, StringConstraints(pattern="^[a-z]{0,100}$")] = ""
    similar: Annotated[str, StringConstraints(pattern="^([0-9a-f]{64})?$")] = ""


@dataclass(frozen=True)
class Manifest:
    """What DIR/manifest.json says.

    root: DIR, a path or URL. kind: text, with a tokenizer, or images, with classes.
    """

    root: str
    kind: Annotated[str, StringConstraints(pattern="^[a-z_]{1,100}$")]
    tokenizer: TokenizerInfo | None
    seed: Count
    valid_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()

    @property
    def shards(self) -> list[Shard]:
        """Of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def fingerprint(self) -> str:
        """sha256 of what all shards hold."""
        sums = [(name, shard.sha256) for name in sorted(self.splits) for shard in self.splits[name].shards]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def save_manifest(manifest: Manifest) -> None:
    """Writes `manifest.root`/manifest.json, the last file of a data set."""
    values = {"format": FORMAT, **asdict(manifest)}
    del values["root"]
    if manifest.tokenizer is not None:
        values["tokenizer"] = {key: value for key, value in values["tokenizer"].items() if value != ""}
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
    if type(found) is not int or found != FORMAT:
        raise InputError(f"{path} has format {found!r}, this version reads format {FORMAT}")
    # Not with its root: a path may hold bytes that are not UTF-8, JSON may not.
    manifest = replace(typed({**values, "root": ""}, Manifest, path), root=os.fspath(directory))
    for problem in _problems(manifest):
        raise InputError(f"{path} is broken: {problem}")
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """What contradicts itself in a manifest whose values have the right types."""
    if sorted(manifest.splits) != sorted(SPLITS):
        yield f"splits are {', '.join(sorted(manifest.splits))}, not {', '.join(SPLITS)}"
    if (manifest.tokenizer is None) == (not manifest.classes):
        yield "it needs either a tokenizer, for text, or classes, for images"
    if len(set(manifest.classes)) < len(manifest.classes):
        yield "a class stands there twice"
    names = [name for shard in manifest.shards for name in (shard.name, shard.index)]
    if len(set(names)) < len(names):
        yield "a file stands there twice"
    for split, found in manifest.splits.items():
        if found != Split.of(found.shards):
            yield f"splits.{split}: its numbers are not the sums of its shards'"
        for shard in found.shards:
            if not shard.name.startswith(f"{split}/") or not shard.index.startswith(f"{split}/"):
                yield f"{shard.name} is not in the folder {split}"
            yield from (f"{shard.name} {problem}" for problem in _problems_of(shard, manifest.tokenizer is not None))


def _problems_of(shard: Shard, is_text: bool) -> Iterator[str]:
    """Numbers are bounded by the tar's size, which is compared with the file: so is the memory that they ask for."""
    if not 0 < shard.samples <= shard.documents:
        yield f"has {shard.documents} documents in {shard.samples} samples"
    if is_text and 2 * shard.tokens + 8 * shard.documents > shard.bytes:
        yield f"has {shard.tokens} tokens of {shard.documents} documents in {shard.bytes} bytes"
    if not is_text and (shard.tokens or shard.documents != shard.samples):
        yield f"has {shard.documents} images and {shard.tokens} tokens in {shard.samples} samples"
    if 1024 * shard.samples > shard.bytes:  # a header and a block of content at least
        yield f"has {shard.samples} samples in {shard.bytes} bytes"


def check_files(manifest: Manifest) -> None:
    """Raises InputError that names the shards which are missing, of another size than the manifest says, or links that
    lead out of the folder."""
    problems = [problem for shard in manifest.shards for problem in misfits(manifest.root, shard)]
    if problems:
        raise InputError(first_of(problems))


def misfits(root: str, shard: Shard) -> Iterator[str]:
    """What is wrong with the files of a shard, as far as that is known without reading them."""
    tar, index = join(root, shard.name), join(root, shard.index)
    size = file_size(tar)
    if size is None:
        yield f"{tar} is missing ({shard.bytes} bytes expected)"
    elif size != shard.bytes:
        yield f"{tar} has {size} bytes, the manifest says {shard.bytes}"
    if not is_file(index):
        yield f"{index} is missing"
    yield from (
        f"{path} is a link that leads out of {root}: put what it leads to in its place (cp -rL copies so)"
        for path in (tar, index)
        if is_local(root) and _leads_out(root, path)
    )


def _leads_out(root: str, path: str) -> bool:
    links = os.path.islink(path) or os.path.islink(os.path.dirname(path))
    return links and not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


def first_of(problems: Sequence[str]) -> str:
    """A line each."""
    more = [f"and {len(problems) - _REPORTED} more"] if len(problems) > _REPORTED else []
    return "\n".join([*problems[:_REPORTED], *more])

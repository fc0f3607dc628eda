"""What is known of the shards in an output folder from the time when they were written.

A finished folder has it in manifest.json. Until then, sums.jsonl has a line for each shard, written when the shard was
closed: what a shard should be is never taken from the file that is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import (
    append_file,
    flush,
    is_file,
    join,
    list_folder,
    read_bytes,
    remove_file,
    sha256,
    write_atomically,
)
from data_pipeline.common.json_files import parse_json, typed
from data_pipeline.shards.manifest import SPLITS, Shard, load_manifest, misfits

_FILE = "sums.jsonl"
_MAX_BYTES = 1 << 28
_SHARD = re.compile(r"shard-\d{6,}\.(tar|index\.npz)")


@dataclass(frozen=True)
class Record:
    """shards: split -> those that were written, by their numbers from 0 on, as the manifest lists them. tokenizer: the
    fingerprint of the one that they were written with. finished: whether there is nothing else to write."""

    shards: Mapping[str, Sequence[Shard]]
    tokenizer: str | None
    finished: bool

    @property
    def all_shards(self) -> list[Shard]:
        return [shard for shards in self.shards.values() for shard in shards]

    def up_to_the_first(self, damaged: Mapping[str, str]) -> Mapping[str, Sequence[Shard]]:
        """The shards of each split before the first of these: what follows it is written again with it."""
        whole = {}
        for split, shards in self.shards.items():
            wrong = [number for number, shard in enumerate(shards) if shard.name in damaged]
            whole[split] = shards[: min(wrong, default=len(shards))]
        return whole


def load_record(root: str) -> Record:
    """Raises InputError where the manifest is broken."""
    if is_file(join(root, _FILE)):
        return _read_lines(root)
    if is_file(join(root, "manifest.json")):
        manifest = load_manifest(root)
        shards = {split: manifest.splits[split].shards for split in SPLITS}
        info = manifest.tokenizer
        return Record(shards, info.fingerprint if info else None, finished=True)
    return Record({split: () for split in SPLITS}, None, finished=False)


def begin_record(root: str, shards: Mapping[str, Sequence[Shard]], tokenizer: str | None) -> None:
    """sums.jsonl with the shards that stay. Raises InputError where a split's folder is a link: what lies behind it is
    not ours to replace."""
    for folder in (join(root, split) for split in SPLITS):
        if os.path.islink(folder):
            raise InputError(f"{folder} is a link; pretrain-data writes only in the folder that output names")
    lines = [json.dumps({"tokenizer": tokenizer}), *(_line(shard) for split in SPLITS for shard in shards[split])]
    write_atomically(join(root, _FILE), "\n".join([*lines, ""]))


def add_to_record(root: str, shard: Shard) -> None:
    """Brings a shard's line to the disk; to be called before the shard gets its name."""
    path = join(root, _FILE)
    with append_file(path) as file:
        file.write(f"{_line(shard)}\n".encode())
        flush(file, path)


def end_record(root: str) -> None:
    """Once the manifest is written; tars that it does not list are removed, as readers of `train/*.tar` take them."""
    listed = {name for shard in load_record(root).all_shards for name in (shard.name, shard.index)}
    for split in SPLITS:
        for name in list_folder(join(root, split)):
            if _SHARD.fullmatch(name) and f"{split}/{name}" not in listed:
                remove_file(join(root, split, name))
    remove_file(join(root, _FILE))


def damage(root: str, shards: Sequence[Shard], num_workers: int) -> dict[str, str]:
    """name -> problem of the shards whose files are missing or differ from what was written. Reads all of them."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # hashing and reading let other threads run
        found = pool.map(lambda shard: next(differences(root, shard), None), shards)
        return {shard.name: problem for shard, problem in zip(shards, found, strict=True) if problem is not None}


def differences(root: str, shard: Shard) -> Iterator[str]:
    """What of the files of a shard is not as it was written."""
    wrong = list(misfits(root, shard))
    yield from wrong
    for name, expected in ((shard.name, shard.sha256), (shard.index, shard.index_sha256)):
        path = join(root, name)
        if any(problem.startswith(f"{path} ") for problem in wrong):
            continue
        try:
            found = sha256(path)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror or error}"
        else:
            if found != expected:
                yield differs(path, expected, found)


def differs(path: str, expected: str, found: str) -> str:
    """The message for a file with another sum."""
    return f"{path} differs from the manifest: sha256 expected {expected}, found {found}"


def _line(shard: Shard) -> str:
    return json.dumps(asdict(shard))


@dataclass(frozen=True)
class _Head:
    tokenizer: str | None


def _read_lines(root: str) -> Record:
    """Up to the first line that is broken: a killed run leaves a torn one. A shard without a line is written again."""
    path = join(root, _FILE)
    try:
        lines = read_bytes(path, _MAX_BYTES, links=False).split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    found: list[_Head | Shard] = []
    with contextlib.suppress(InputError):
        found = typed(list(_parsed(lines)), list[_Head | Shard], path)
    noted = {entry.name: entry for entry in found if isinstance(entry, Shard)}
    heads = [entry.tokenizer for entry in found if isinstance(entry, _Head)]
    return Record({split: _numbered(noted, split) for split in SPLITS}, heads[0] if heads else None, finished=False)


def _parsed(lines: Sequence[bytes]) -> Iterator[object]:
    for line in lines:
        try:
            yield parse_json(line)
        except ValueError:
            return


def _numbered(noted: Mapping[str, Shard], split: str) -> list[Shard]:
    found: list[Shard] = []
    while (name := f"{split}/{shard_name(len(found))}") in noted:
        found.append(noted[name])
    return found


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def index_name(shard: str) -> str:
    """The name of the index of a tar."""
    return f"{shard.removesuffix('.tar')}.index.npz"

"""What an output folder was started with (plan.json), so that a later run continues it or leaves it alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import append_file, exists, is_file, is_folder, join, list_folder, make_folder
from data_pipeline.common.json_files import read_json, typed, write_json
from data_pipeline.shards.manifest import SPLITS, Count

_FORMAT = 1
_FILE = "plan.json"
_HINT = "remove the folder or choose another output"


@dataclass(frozen=True)
class Scan:
    """What decides the split, and by what changed inputs are noticed. `documents` are texts or images."""

    documents: Count
    bytes: Count  # of UTF-8, or of image files
    valid_documents: Count
    smallest_hash: Annotated[int, Field(ge=0, lt=1 << 64)]
    corpus_hash: str  # of every document in order


@dataclass(frozen=True)
class Continuation:
    """settings: what decides the output, the inputs apart. listing: hashes the inputs' paths, sizes and times: where it
    is the same, the inputs are taken to be the same."""

    settings: dict[str, Any]
    listing: str
    scan: Scan

    def save(self, root: str) -> None:
        write_json(join(root, _FILE), {"format": _FORMAT, **asdict(self)})


def load_continuation(root: str) -> Continuation | None:
    """None where the folder does not exist or is empty. Raises InputError where it contains something else."""
    if exists(root) and not is_folder(root):
        raise InputError(f"output={root} is a file; a folder is needed")
    file = join(root, _FILE)
    if not is_file(file):
        if any(not name.startswith(".") for name in list_folder(root)):
            raise InputError(
                f"output={root} contains other files but no {_FILE}; nothing was written. Choose a new or empty folder"
            )
        return None
    for name in (name for name in (*SPLITS, "tokenizer") if os.path.islink(join(root, name))):
        raise InputError(f"{join(root, name)} is a link, through which nothing is written; {_HINT}")
    values = read_json(file)
    if type(values.get("format")) is not int or values["format"] != _FORMAT:
        raise InputError(f"{file} has format {values.get('format')!r}, this version reads format {_FORMAT}; {_HINT}")
    try:
        return typed(values, Continuation, file)
    except InputError as error:
        raise InputError(f"{error}; {_HINT}") from error


def check_settings(root: str, before: Continuation, settings: dict[str, Any]) -> None:
    """Raises InputError that lists the settings which differ from those that `root` was started with."""
    keys = [key for key in {**before.settings, **settings} if before.settings.get(key) != settings.get(key)]
    if keys:
        lines = [f"- {key} was {before.settings.get(key)!r}, is now {settings.get(key)!r}" for key in keys]
        raise InputError(
            f"output={root} was created with different settings; nothing was written. "
            "Choose another output or remove that folder.\n" + "\n".join(lines)
        )


def check_corpus(root: str, before: Continuation, scan: Scan) -> None:
    """Raises InputError where `root` was started with other inputs."""
    if before.scan != scan:
        raise InputError(
            f"output={root} was created from other data than corpus.inputs names now; nothing was written. "
            f"There were {before.scan.documents} documents of {before.scan.bytes} bytes, now there are "
            f"{scan.documents} of {scan.bytes}. Choose another output or remove that folder."
        )


@contextlib.contextmanager
def locked(root: str) -> Iterator[None]:
    """Makes the local folder `root` and keeps other processes from writing it."""
    make_folder(root)
    # The lock belongs to the open descriptor, so that the system releases it however we end.
    with append_file(join(root, ".lock")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"output={root} is being written by another process") from error
        yield

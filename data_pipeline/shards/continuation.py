"""What an output folder was begun with (plan.json), so that a later run continues it or leaves it alone."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.json_files import read_json, write_json
from data_pipeline.sources.scan import Scan

_FORMAT = 1
_FILE = "plan.json"
_HINT = "remove the folder or choose another output"


@dataclass(frozen=True)
class Continuation:
    """`listing` hashes the inputs' paths, sizes and times: where it is the same, no second scan is made."""

    settings: dict[str, Any]
    listing: str
    scan: Scan

    def save(self, root: Path) -> None:
        values = {"format": _FORMAT, **asdict(self)}
        write_json(root / _FILE, values)


def load_continuation(root: Path) -> Continuation | None:
    """None for a folder that isn't there or is empty. Raises InputError where something else lies in it."""
    if root.exists() and not root.is_dir():
        raise InputError(f"output={root} is a file; a folder is needed")
    if not (root / _FILE).is_file():
        if root.is_dir() and any(not p.name.startswith(".") for p in root.iterdir()):
            raise InputError(
                f"output={root} holds other files and no {_FILE}; nothing was written. Choose a new or empty folder"
            )
        return None
    values = read_json(root / _FILE)
    if values.get("format") != _FORMAT:
        raise InputError(
            f"{root / _FILE} has format {values.get('format')!r}, this version reads format {_FORMAT}; {_HINT}"
        )
    try:
        return Continuation(values["settings"], values["listing"], Scan(**values["scan"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{root / _FILE} is broken ({error!r}); {_HINT}") from error


def check_settings(root: Path, plan: Continuation, settings: dict[str, Any]) -> None:
    """Raises InputError that lists the settings which differ from those that `root` was begun with."""
    keys = [key for key in {**plan.settings, **settings} if plan.settings.get(key) != settings.get(key)]
    if keys:
        lines = [f"- {key}: {plan.settings.get(key)!r} there, {settings.get(key)!r} now" for key in keys]
        raise InputError(
            f"output={root} was made with other settings; nothing was written. "
            "Choose another output, or remove that one.\n" + "\n".join(lines)
        )


def check_corpus(root: Path, plan: Continuation, scan: Scan) -> None:
    """Raises InputError where `root` was begun with other text."""
    if plan.scan != scan:
        raise InputError(
            f"output={root} was made from other text than corpus.inputs holds now; nothing was written. "
            f"There were {plan.scan.documents} documents of {plan.scan.bytes} bytes, now there are "
            f"{scan.documents} of {scan.bytes}. Choose another output, or remove that one."
        )


def listing_hash(files: list[str]) -> str:
    """sha256 of path, size and modification time of `files`."""
    digest = hashlib.sha256()
    for path in files:
        found = os.stat(path)
        digest.update(
            f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Makes the folder `root` and keeps other processes from writing it; the system frees it at any end."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"output={root} is being written by another process") from error
        yield

"""Every file of a prepared data set is opened and written here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Literal


def open_file(path: Path, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
    """A file of a prepared data set, as bytes."""
    return open(path, mode)


def write_atomically(path: Path, data: bytes) -> None:
    """Under a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open_file(temporary, "wb") as file:
        file.write(data)
        flush(file)
    os.replace(temporary, path)


def flush(file: BinaryIO) -> None:
    """Brings what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()

"""The one door to storage: every file of a data set is opened, listed and written here, through fsspec.

A location is a path or a URL that fsspec knows (memory://, s3://, ...). What decides a run is written atomically:
a reader sees the old content or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import os
from typing import IO, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

Location = str | os.PathLike[str]
_LOCAL = LocalFileSystem()


def join(location: Location, *names: str) -> str:
    """The location of `names` below the folder `location`."""
    return "/".join([os.fspath(location).rstrip("/") or "/", *names])


def is_local(location: Location) -> bool:
    """Whether `location` is a path of this machine."""
    return "://" not in os.fspath(location)


def open_file(location: Location, mode: Literal["rb", "wb"] = "rb") -> IO[bytes]:
    """A file as bytes. Raises OSError."""
    system, path = _resolve(location)
    return system.open(path, mode)


def read_bytes(location: Location) -> bytes:
    """All of a file. Raises OSError."""
    system, path = _resolve(location)
    return system.cat_file(path)


def read_range(location: Location, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, fewer at the end of the file: one request where the storage is remote."""
    system, path = _resolve(location)
    return system.cat_file(path, start=offset, end=offset + size)


def file_size(location: Location) -> int | None:
    """In bytes; None where there is no such file."""
    system, path = _resolve(location)
    try:
        found = system.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(found["size"]) if found["type"] == "file" else None


def is_file(location: Location) -> bool:
    return file_size(location) is not None


def is_folder(location: Location) -> bool:
    system, path = _resolve(location)
    return system.isdir(path)


def exists(location: Location) -> bool:
    system, path = _resolve(location)
    return system.exists(path)


def list_folder(location: Location) -> list[str]:
    """The sorted names of what lies in a folder, none where there is no such folder."""
    system, path = _resolve(location)
    if not system.isdir(path):
        return []
    return sorted(entry.rstrip("/").rpartition("/")[2] for entry in system.ls(path, detail=False))


def make_folder(location: Location) -> None:
    """With its parents; no error where it is there already."""
    system, path = _resolve(location)
    system.makedirs(path, exist_ok=True)


def remove_file(location: Location) -> None:
    system, path = _resolve(location)
    system.rm_file(path)


def remove_folder(location: Location) -> None:
    """With all that lies in it; no error where there is none."""
    system, path = _resolve(location)
    if system.exists(path):
        system.rm(path, recursive=True)


def write_atomically(location: Location, data: bytes | str) -> None:
    """Under a temporary name, flushed to the disk, then renamed. Text is written as UTF-8."""
    temporary = temporary_name(location)
    with open_file(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        flush(file, temporary)
    rename(temporary, location)


def temporary_name(location: Location) -> str:
    """Where a file is written before it gets its name: hidden, beside it, so that a rename suffices."""
    folder, slash, name = os.fspath(location).rpartition("/")
    return f"{folder}{slash}.{name}.tmp"


def flush(file: IO[bytes], location: Location) -> None:
    """Brings what was written to `location` to the disk; remote storage keeps what it acknowledged."""
    file.flush()
    if is_local(location):
        os.fsync(file.fileno())


def rename(source: Location, target: Location) -> None:
    """Replaces `target`; on a local disk in one step that outlives a crash of the machine."""
    system, path = _resolve(target)
    if system is not _LOCAL:
        system.mv(_resolve(source)[1], path)
        return
    os.replace(source, path)  # fsspec's mv would copy where a rename is refused, and a copy is not atomic
    sync(os.path.dirname(path))


def sync(path: Location) -> None:
    """Brings a local file, or the names in a local folder, to the disk: a rename must not outlive what it points to,
    and is itself lost with the machine's power as long as its folder is not written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(location: Location) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(location) as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _resolve(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """-> (file system, path in it). fsspec reads '~' and '::' in a path as its own syntax: a local path keeps them as
    the characters they are, and so no name in a manifest can lead to a second URL."""
    name = os.fspath(location)
    if is_local(name):
        return _LOCAL, os.path.abspath(name)
    if "::" in name:
        raise ValueError(f"{name}: chained URLs are not supported")
    return fsspec.core.url_to_fs(name)

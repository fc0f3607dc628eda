"""The one door to storage: every file of a data set is opened, listed and written here, through fsspec.

A location is a path or a URL that fsspec knows (memory://, s3://, ...). What decides a run is written atomically:
a reader sees the old content or the new one, never a part.

Folders may hold what others put there. A local file is opened only if it is a plain one: a named pipe would never
answer, a device never end. Files are made under fresh names and never through a link; what is removed is what lies
there, never what a link there points to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.common.plain_files import create_new, open_plain, temporary_name

Location = str | os.PathLike[str]
_LOCAL = LocalFileSystem()
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp", re.DOTALL)
# What a name that can't be one has instead of a file: too long, a loop of links, a character that none may have.
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def join(location: Location, *names: str) -> str:
    """The location of `names` below the folder `location`."""
    return "/".join([os.fspath(location).rstrip("/") or "/", *names])


def inside(folder: Location, name: str) -> str:
    """The location of `name`, which a file of another's names, in `folder`. Raises ValueError where it is elsewhere."""
    parts = name.split("/")
    if not name or "\0" in name or "\\" in name or "://" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:200]!r} is not the name of a file in {os.fspath(folder)}")
    return join(folder, name)


def is_local(location: Location) -> bool:
    """Whether `location` is a path of this machine."""
    return "://" not in os.fspath(location)


def open_file(location: Location, *, links: bool = True) -> IO[bytes]:
    """A plain file, to read. Raises OSError, for what is no plain file as well.

    links: whether the name may be a link, as those of other tools' caches are; one of our own files is none.
    """
    system, path = _resolve(location)
    if system is not _LOCAL:
        return system.open(path, "rb")
    return os.fdopen(open_plain(path, links=links), "rb")


def create_file(location: Location) -> IO[bytes]:
    """A file to write that is not there yet. Raises OSError, FileExistsError also where a link lies there."""
    system, path = _resolve(location)
    if system is not _LOCAL:
        return system.open(path, "wb")
    return os.fdopen(create_new(path), "wb")


def append_file(path: Location) -> IO[bytes]:
    """A local file of ours, to be gone on with, or a lock; made where it is missing. Raises OSError, for a link too."""
    return os.fdopen(open_plain(_resolve(path)[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, links=False), "ab")


def read_bytes(location: Location, limit: int | None = None, *, links: bool = True) -> bytes:
    """All of a file. Raises OSError, also where it is larger than `limit` bytes. links: as `open_file`."""
    with open_file(location, links=links) as file:
        data = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", os.fspath(location))
    return data


def read_range(location: Location, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, fewer at the end of the file: one request where the storage is remote."""
    system, path = _resolve(location)
    if system is not _LOCAL:
        return system.cat_file(path, start=offset, end=offset + size)
    with open_file(location) as file:
        file.seek(offset)
        return file.read(size)


def file_size(location: Location) -> int | None:
    """In bytes; None where there is no such file, or what is there is no plain one. Raises OSError."""
    try:
        system, path = _resolve(location)
        if system is _LOCAL:
            status = os.stat(path)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        found = system.info(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in _NO_SUCH_FILE:  # fsspec's have no number
            return None
        raise
    return int(found["size"]) if found["type"] == "file" else None


def is_file(location: Location) -> bool:
    return file_size(location) is not None


def is_folder(location: Location) -> bool:
    if not _is_name(location):
        return False
    system, path = _resolve(location)
    return system.isdir(path)


def exists(location: Location) -> bool:
    if not _is_name(location):
        return False
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
    """What has that name; of a link the link itself. Raises OSError."""
    system, path = _resolve(location)
    if system is _LOCAL:
        os.unlink(path)
    else:
        system.rm_file(path)


def remove_folder(location: Location) -> None:
    """With all that lies in it; no error where there is none. Of a link, there or in it, the link itself is removed."""
    system, path = _resolve(location)
    if system is not _LOCAL:
        if system.exists(path):
            system.rm(path, recursive=True)
    elif os.path.islink(path):
        os.unlink(path)
    elif os.path.lexists(path):
        shutil.rmtree(path)  # walks by descriptors: a link that takes a folder's place meanwhile is not followed


def remove_temporaries(location: Location) -> None:
    """Removes what killed processes left unfinished in a folder of ours; nothing where the folder is a link."""
    if is_local(location) and os.path.islink(os.fspath(location).rstrip("/")):
        return
    for name in filter(_TEMPORARY.fullmatch, list_folder(location)):
        remove_folder(found) if is_folder(found := join(location, name)) else remove_file(found)


def write_atomically(location: Location, data: bytes | str) -> None:
    """Under a temporary name, flushed to the disk, then renamed: a link of that name is replaced, not followed. Text is
    written as UTF-8. Raises OSError, and then leaves what was there."""
    temporary = temporary_name(location)
    file = create_file(temporary)
    try:
        with file:
            file.write(data.encode() if isinstance(data, str) else data)
            flush(file, temporary)
        rename(temporary, location)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_file(temporary)
        raise


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
    the characters they are, and so no name in a manifest can lead to a second URL. Raises OSError for a name that no
    file can have."""
    name = os.fspath(location)
    if not _is_name(name):
        raise OSError(errno.EINVAL, "no file can have such a name", ascii(name))
    if is_local(name):
        return _LOCAL, os.path.abspath(name)
    if "::" in name:
        raise ValueError(f"{name}: chained URLs are not supported")
    return fsspec.core.url_to_fs(name)


def _is_name(location: Location) -> bool:
    """Whether a file can have that name: JSON can spell a NUL, and half of a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(location)
    except UnicodeEncodeError:
        return False

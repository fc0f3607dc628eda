"""Opening local files that others may have put there. The standard library alone is imported: it takes no time."""

from __future__ import annotations

import errno
import os
import secrets
import stat

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link",
}


def open_plain(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, links: bool = True) -> int:
    """A descriptor of a plain file. Raises OSError. links: whether the name may be one.

    Never waits: the kind is looked at before, since opening a device may already do something, and after, since the
    name may have got another meaning.
    """
    found = os.stat if links else os.lstat
    try:
        _require_plain(path, found(path).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    more = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags | more, 0o666)
    try:
        _require_plain(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def create_new(path: str | os.PathLike[str]) -> int:
    """A descriptor of a file that was not there. Raises OSError, FileExistsError also where a link lies there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def temporary_name(location: str | os.PathLike[str]) -> str:
    """A new name at each call, for a file that is renamed to `location` once it is written: hidden and beside it.
    Nobody can know it before, and so lay a link there."""
    folder, slash, name = os.fspath(location).rpartition("/")
    # cut: with the name's end the whole must not get longer than file systems allow (255 bytes)
    return f"{folder}{slash}.{name[:50]}.{secrets.token_hex(4)}.tmp"


def _require_plain(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a plain file", path)

"""Which files lie in a folder, and what of it is left out: counted by kind, so that nothing is lost without a word."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterator

from data_pipeline.common.errors import InputError


class LeftOut:
    """What is not read, by kind ("dangling links", "empty documents") and number."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, number: int = 1) -> None:
        self._counts[kind] += number

    def update(self, other: LeftOut) -> None:
        self._counts.update(other._counts)

    def __str__(self) -> str:
        """'left out: 2 dangling links, 1 empty documents', or '' where nothing was."""
        found = ", ".join(f"{number} {kind}" for kind, number in sorted(self._counts.items()) if number)
        return f"left out: {found}" if found else ""


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError within becomes an InputError that names this input: anything else would be blamed on the output."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"corpus.inputs: {error.filename or path} cannot be read: {error.strerror or error}"
        ) from error


def entries_of(folder: str, left_out: LeftOut, skip: str | None = None) -> list[os.DirEntry[str]]:
    """The files and folders in `folder`, by name. Left out: hidden ones, links that lead nowhere, the folder `skip`
    (a real path; the output may lie within the input), and what is no file. Raises InputError."""
    with reading(folder), os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
        return [entry for entry in entries if _is_wanted(entry, left_out, skip)]


def files_below(folder: str, left_out: LeftOut, skip: str | None = None) -> Iterator[str]:
    """Every file in `folder` and its subfolders, linked ones too, but no folder twice. Raises InputError."""
    waiting, seen = [folder], {os.path.realpath(folder)}
    while waiting:
        for entry in entries_of(waiting.pop(), left_out, skip):
            if not entry.is_dir():
                yield entry.path
            elif (real := os.path.realpath(entry.path)) in seen:
                left_out.add("folders that are linked again")
            else:
                seen.add(real)
                waiting.append(entry.path)


def suffix_kind(path: str) -> str:
    """How a file that is not read is counted."""
    suffix = os.path.splitext(path)[1].lower()
    return f"files ending in {suffix}" if suffix else "files without a suffix"


def _is_wanted(entry: os.DirEntry[str], left_out: LeftOut, skip: str | None) -> bool:
    if entry.name.startswith("."):
        left_out.add("hidden folders" if entry.is_dir() else "hidden files")
        return False
    try:
        entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            left_out.add("dangling links")
            return False
        raise
    if entry.is_dir():
        return skip is None or os.path.realpath(entry.path) != skip
    if not entry.is_file():
        left_out.add("sockets, pipes and devices")
        return False
    return True

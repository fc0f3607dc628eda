"""WebDataset tars that others made, as raw inputs: samples are members whose names have the same key.

webdataset groups the members, and does nothing else here: its own opener starts a shell for `pipe:` names, its tar
reader holds whole members in memory and takes a damaged tar for a shorter one, its default decoders unpickle.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import open_file
from data_pipeline.sources.find import LeftOut, reading

TAR_SUFFIX = ".tar"


class Member(NamedTuple):
    """Where the content of a file lies in a tar, in bytes."""

    tar: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"

    @property
    def kind(self) -> str:
        """What follows the last dot of its name, in lower case."""
        return self.name.rpartition(".")[2].lower()

    def open(self) -> IO[bytes]:
        return io.BufferedReader(_Slice(open_file(self.tar), self.offset, self.size), 1 << 17)

    def read(self, max_bytes: int) -> bytes:
        """All of it. Raises InputError where that is more than `max_bytes`."""
        if self.size > max_bytes:
            raise InputError(f"{self} has {self.size} bytes, more than {max_bytes}")
        with reading(self.tar), self.open() as file:
            return file.read()


def samples_of(tar: str, left_out: LeftOut) -> Iterator[Mapping[str, Member]]:
    """The samples of a tar in its order, each {suffix: member}: `a/b.seg.TXT` has the key a/b, the suffix seg.txt.

    Raises InputError that names the tar where it is damaged or truncated, or a file stands in a sample twice.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys  # imports torch

    def named() -> Iterator[dict[str, object]]:
        for member in _members(tar, left_out):
            if base_plus_ext(member.name)[0] is None:  # group_by_keys would drop it without a word
                left_out.add("members of tars without a suffix")
            else:
                yield {"fname": member.name, "data": member, "__url__": tar}

    try:
        for sample in group_by_keys(named()):
            yield {suffix: member for suffix, member in sample.items() if isinstance(member, Member)}
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{tar}: {error.args[0]}") from error


def _members(tar: str, left_out: LeftOut) -> Iterator[Member]:
    with reading(tar), open_file(tar) as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - it owns nothing but `file`
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                if _is_wanted(info, left_out):
                    yield Member(tar, info.name, info.offset_data, info.size)
            # tarfile takes anything that is no header for the end
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, EOFError, OverflowError, RecursionError, UnicodeError) as error:
            raise InputError(f"{tar}: the tar is damaged or truncated ({error})") from error
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise InputError(f"{tar}: the tar is damaged or truncated (at byte {archive.offset})")


def _is_wanted(info: tarfile.TarInfo, left_out: LeftOut) -> bool:
    folders, _, name = info.name.rpartition("/")
    if info.isdir():
        return False
    if not info.isreg() or info.issparse():
        left_out.add("members of tars that are links, sparse or no files")
    elif any(part.startswith(".") and part not in (".", "..") for part in (*folders.split("/"), name)):
        left_out.add("hidden members of tars")
    else:
        return True
    return False


class _Slice(io.RawIOBase):
    """`size` bytes of a file from `offset` on."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._left = file, size
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        if self._left and not data:
            raise OSError("the tar ends within a member")
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

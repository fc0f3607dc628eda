"""Text sources: documents in a fixed order from files, globs and folders, in bounded memory."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import IO, Annotated, Literal, NamedTuple

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, configclass
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.sources.patterns import is_excluded

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_SUFFIXES = TEXT_SUFFIXES + JSONL_SUFFIXES
_NAMED_LINES = 5


@configclass
class TextConfig(CorpusConfig):
    """Which text is read.

    inputs: files, globs and folders, as in [book.txt,'notes/*.md',folder].
    exclude: patterns on absolute paths, as in ['*/test/*']; * spans folders.
    text_field: the field of .jsonl lines that holds the text.
    max_document_bytes: a longer document is cut at line ends into several, so that memory stays bounded.
    max_bad_lines: how many lines of the .jsonl files, all together, may be unreadable; they are skipped.
    """

    kind: Literal["text"]
    inputs: list[str]
    exclude: list[str] = pydantic.Field(default_factory=list)
    text_field: str = "text"
    max_document_bytes: Annotated[int, pydantic.Field(ge=16)] = 262144
    max_bad_lines: NonNegative = 0


class RawDocument(NamedTuple):
    text: str
    source: str


class _BadLine(Exception):
    """Why a line of a .jsonl file holds no document."""


class TextSource:
    """The documents of a corpus. `files` are sorted and without repeats; empty documents are left out."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config
        self.files = find_files(config.inputs, config.exclude)
        self.bad_lines: list[str] = []

    def documents(self) -> Iterator[RawDocument]:
        """Every document in the order of `files`, from the beginning at each call. InputError names file and line."""
        self.bad_lines = []
        for path in self.files:
            texts = self._jsonl(path) if path.endswith(JSONL_SUFFIXES) else self._plain(path)
            try:
                yield from (RawDocument(text, path) for text in texts)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(f"{path}: the compressed file is damaged or truncated ({error})") from error
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from error

    def _plain(self, path: str) -> Iterator[str]:
        offset = 0
        with open(path, "rb") as file:
            for part in _read_parts(file, self._config.max_document_bytes):
                try:
                    yield part.decode("utf-8")  # keeps a byte order mark and every line end as it is
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}: not UTF-8 at byte {offset + error.start} ({error.reason})") from error
                offset += len(part)

    def _jsonl(self, path: str) -> Iterator[str]:
        with _open_compressed(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = _field(line, self._config.text_field)
                except _BadLine as why:
                    self._count(f"{path}, line {number}: {why}")
                    continue
                parts = _read_parts(io.BytesIO(text), self._config.max_document_bytes)
                yield from (part.decode() for part in parts)

    def _count(self, problem: str) -> None:
        self.bad_lines.append(problem)
        if len(self.bad_lines) > self._config.max_bad_lines:
            named = "\n".join(self.bad_lines[-_NAMED_LINES:])
            raise InputError(
                f"{named}\n{len(self.bad_lines)} unreadable lines, more than "
                f"corpus.max_bad_lines={self._config.max_bad_lines}"
            )


def find_files(inputs: list[str], exclude: list[str]) -> list[str]:
    """The files that `inputs` name. Raises InputError that lists every input without files."""
    found: dict[str, str] = {}
    problems: list[str] = []
    if not inputs:
        problems.append("corpus.inputs is empty: give files, globs or folders")
    for entry in inputs:
        try:
            files = [f for f in _expand(os.path.expanduser(entry)) if not is_excluded(f, exclude)]
        except InputError as error:
            problems.append(str(error))
            continue
        if not files:
            problems.append(
                f"corpus.inputs: {entry} has no files ending in {', '.join(_SUFFIXES)}"
                + (" besides those that corpus.exclude matches" if exclude else "")
            )
        found.update({os.path.realpath(f): f for f in sorted(files, reverse=True)})
    if problems:
        raise InputError("\n".join(problems))
    return sorted(found.values())


def _expand(entry: str) -> list[str]:
    if os.path.isfile(entry):
        if not entry.endswith(_SUFFIXES):
            raise InputError(f"corpus.inputs: {entry} has an unsupported type; supported are {', '.join(_SUFFIXES)}")
        return [entry]
    if os.path.isdir(entry):
        return _files_below(entry)
    if not glob.has_magic(entry):
        raise InputError(f"corpus.inputs: {entry} does not exist")
    matches = glob.glob(entry, recursive=True)
    if not matches:
        raise InputError(f"corpus.inputs: {entry} matches no files")
    return [f for m in matches for f in (_files_below(m) if os.path.isdir(m) else [m]) if f.endswith(_SUFFIXES)]


def _files_below(folder: str) -> list[str]:
    files = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return [f for f in files if f.endswith(_SUFFIXES) and os.path.isfile(f)]


def _read_parts(file: IO[bytes], max_bytes: int) -> Iterator[bytes]:
    """The content of `file` in parts of at most `max_bytes`, cut after the end of a line where there is one."""
    rest = b""
    while data := rest + file.read(max_bytes + 1 - len(rest)):
        if len(data) <= max_bytes:
            yield data
            return
        cut = data.rfind(b"\n", 0, max_bytes) + 1 or _character_start(data, max_bytes)
        yield data[:cut]
        rest = data[cut:]


def _character_start(data: bytes, limit: int) -> int:
    """The last position up to `limit` where a UTF-8 character starts; `limit` itself where the data is not UTF-8."""
    for position in range(limit, max(limit - 4, 0), -1):
        if data[position] & 0xC0 != 0x80:
            return position
    return limit


def _field(line: bytes, field: str) -> bytes:
    """The UTF-8 of `field` in the JSON object that `line` holds; empty for a blank line."""
    if not line.strip():
        return b""
    try:
        record = json.loads(line.decode("utf-8-sig"))  # the file may begin with a byte order mark
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 at byte {error.start} of the line") from error
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        keys = ", ".join(list(record)[:8]) if isinstance(record, dict) else type(record).__name__
        raise _BadLine(f"no text in the field {field!r} (corpus.text_field); it has: {keys}")
    try:
        return record[field].encode()
    except UnicodeEncodeError as error:
        raise _BadLine(f"an unpaired surrogate in the field {field!r}") from error


def _open_compressed(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(path), 1 << 17)
    return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Decompresses frame after frame. zstandard's own reader takes a truncated file for a complete one."""

    def __init__(self, path: str) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115 - until close()
        self._zstandard = zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._frame.unused_data or self._file.read(1 << 17)
            if not data:
                if self._started and not self._frame.eof:
                    raise EOFError("the last frame is incomplete")
                return 0
            self._decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _decompress(self, data: bytes) -> None:
        if self._frame.eof:
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        self._started = True
        try:
            self._ready = self._frame.decompress(data)
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error

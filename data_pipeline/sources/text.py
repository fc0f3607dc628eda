"""Text sources: documents in a fixed order from files, globs and folders, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Annotated, Literal, NamedTuple, Protocol

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, Paths, configclass
from data_pipeline.sources.compressed import open_compressed
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.sources.encodings import AUTO, check_encoding, find_encoding, recoded
from data_pipeline.sources.find import LeftOut
from data_pipeline.sources.tars import TAR_SUFFIX, Member, samples_of
from data_pipeline.sources.text_files import JSONL_SUFFIXES, TEXT_SUFFIXES, find_files

_NAMED_LINES = 5
_NAMED_FILES = 10
MAX_LINE_BYTES = 1 << 28  # of a .jsonl file: a few times as much memory is taken at most


@configclass
class TextConfig(CorpusConfig):
    """Which text is read.

    inputs: files, globs and folders, as in [book.txt,'notes/*.md',folder]; tars in WebDataset form by name or glob.
    exclude: patterns on absolute paths, as in ['*/test/*']; * spans folders.
    text_field: the field of .jsonl lines that holds the text; meta.text is the field text of the field meta.
    encoding: null takes UTF-8 alone; latin-1, cp1252, ... reads all files as that; auto finds it for each file.
    max_document_bytes: a longer document is cut at line ends into several, so that memory stays bounded.
    max_bad_lines: how many lines of the .jsonl files, all together, may be unreadable; they are skipped.
    """

    kind: Literal["text"]
    inputs: Paths
    exclude: Paths = pydantic.Field(default_factory=list)
    text_field: str = "text"
    encoding: str | None = None
    max_document_bytes: Annotated[int, pydantic.Field(ge=16)] = 262144
    max_bad_lines: NonNegative = 0


class RawDocument(NamedTuple):
    """source: the file. entry: number of the entry of corpus.inputs that names it."""

    text: str
    source: str
    entry: int = 0


class RawSource(Protocol):
    """The texts of a corpus that `pretrain-data` makes documents of.

    files: sorted or in the user's order, without repeats. After a pass: left_out, what of the inputs is no document;
    bad_lines, what could not be read; encodings, how files were read that are not UTF-8; replaced, how many characters
    of them could not be.
    """

    files: list[str]
    left_out: LeftOut
    bad_lines: list[str]
    encodings: Counter[str]
    replaced: int

    def documents(self) -> Iterator[RawDocument]:
        """Every document in order, from the beginning at each call. InputError names file and line."""
        ...


class BadLine(Exception):
    """Why a line of a .jsonl file holds no document."""


class TextSource:
    """The documents of a corpus. `files` are sorted and without repeats; blank documents are left out.

    skip: a folder within the inputs that is not one of them, the output. After a pass, `left_out` says what of the
    inputs is no document, `encodings` how files were read that are not UTF-8, `replaced` how many characters of them
    could not be.
    """

    def __init__(self, config: TextConfig, skip: str | None = None) -> None:
        self._config = config
        if config.encoding is not None:
            check_encoding(config.encoding)
        self._files_left_out = LeftOut()
        self._entries = find_files(config.inputs, config.exclude, self._files_left_out, skip)
        self.files = list(self._entries)
        self._found_encodings: dict[str, str] = {}
        self._begin()

    def documents(self) -> Iterator[RawDocument]:
        """Every document in the order of `files`, from the beginning at each call. InputError names file and line."""
        self._begin()
        for path in self.files:
            try:
                yield from (RawDocument(text, path, self._entries[path]) for text in self._texts(path))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(f"{path}: the compressed file is damaged or truncated ({error})") from error
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from error
        if self._not_utf8:
            raise InputError(_remedy(self._not_utf8))

    def _begin(self) -> None:
        self.bad_lines: list[str] = []
        self._not_utf8: list[str] = []
        self.encodings: Counter[str] = Counter()
        self.replaced = 0
        self.left_out = LeftOut()
        self.left_out.update(self._files_left_out)

    def _texts(self, path: str) -> Iterator[str]:
        if path.lower().endswith(TAR_SUFFIX):
            for sample in samples_of(path, self.left_out):
                yield from self._sample(sample)
        elif path.lower().endswith(JSONL_SUFFIXES):
            yield from self._jsonl(path, lambda: open_compressed(path))
        else:
            yield from self._plain(path, lambda: open_compressed(path))

    def _sample(self, sample: Mapping[str, Member]) -> Iterator[str]:
        """Of a tar: its texts where it has some (.json beside them describes them), else its .json and .jsonl."""
        texts = [member for member in sample.values() if f".{member.kind}" in TEXT_SUFFIXES]
        records = [member for member in sample.values() if member.kind in ("json", "jsonl")]
        if not texts and not records:
            self.left_out.add("samples of tars without .txt, .json or .jsonl")
        for member in texts:
            yield from self._plain(str(member), member.open)
        for member in [] if texts else records:
            if member.kind == "jsonl":
                yield from self._jsonl(str(member), member.open)
            else:
                yield from self._json(member)

    def _plain(self, name: str, opener: Callable[[], IO[bytes]]) -> Iterator[str]:
        try:
            with self._open(name, opener) as file:
                yield from self._document(self._decoded(file))
        except UnicodeDecodeError as error:
            self._not_utf8.append(f"{name}: not UTF-8 at byte {self._offset + error.start} ({error.reason})")

    def _decoded(self, file: IO[bytes]) -> Iterator[str]:
        self._offset = 0
        for part in _read_parts(file, self._config.max_document_bytes):
            yield part.decode("utf-8")  # keeps a byte order mark and every line end as it is
            self._offset += len(part)

    def _jsonl(self, name: str, opener: Callable[[], IO[bytes]]) -> Iterator[str]:
        with self._open(name, opener) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    self._count(f"{name}, line {number}: longer than {MAX_LINE_BYTES} bytes")
                    _skip_line(file)
                elif line.strip():
                    yield from self._record(f"{name}, line {number}", line)
                else:
                    self.left_out.add("blank lines")

    def _json(self, member: Member) -> Iterator[str]:
        with self._open(str(member), lambda: io.BytesIO(member.read(MAX_LINE_BYTES))) as file:
            yield from self._record(str(member), file.read())

    def _record(self, name: str, data: bytes) -> Iterator[str]:
        try:
            text = field_text(data, self._config.text_field)
        except BadLine as why:
            self._count(f"{name}: {why}")
            return
        parts = _read_parts(io.BytesIO(text), self._config.max_document_bytes)
        yield from self._document(part.decode() for part in parts)

    def _document(self, parts: Iterator[str]) -> Iterator[str]:
        """The parts of one document; none where all of it is blank."""
        first, second = next(parts, ""), next(parts, None)
        if second is None and not first.strip("\ufeff\0").strip():
            self.left_out.add("documents without text")
            return
        yield first
        if second is not None:
            yield second
        yield from parts

    def _open(self, name: str, opener: Callable[[], IO[bytes]]) -> IO[bytes]:
        """As UTF-8 where corpus.encoding asks for another encoding."""
        encoding = self._config.encoding
        if encoding == AUTO:
            if name not in self._found_encodings:
                with opener() as file:
                    self._found_encodings[name] = find_encoding(file, name)
            encoding = self._found_encodings[name]
            if encoding == "utf-8":
                return opener()
        if encoding is None:
            return opener()
        self.encodings[encoding] += 1
        return recoded(opener(), encoding, self._add_replaced)

    def _add_replaced(self, characters: int) -> None:
        self.replaced += characters

    def _count(self, problem: str) -> None:
        self.bad_lines.append(problem)
        if len(self.bad_lines) > self._config.max_bad_lines:
            named = "\n".join(self.bad_lines[-_NAMED_LINES:])
            raise InputError(
                f"{named}\n{len(self.bad_lines)} unreadable lines, more than "
                f"corpus.max_bad_lines={self._config.max_bad_lines}"
            )


def _remedy(not_utf8: list[str]) -> str:
    more = [f"... and {len(not_utf8) - _NAMED_FILES} more"] if len(not_utf8) > _NAMED_FILES else []
    return "\n".join(
        [
            *not_utf8[:_NAMED_FILES],
            *more,
            f"{len(not_utf8)} files are not UTF-8: corpus.encoding=latin-1 (or another name) reads all files as that, "
            "corpus.encoding=auto finds the encoding of each, corpus.exclude leaves files out",
        ]
    )


def _skip_line(file: IO[bytes]) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


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


def field_text(data: bytes, field: str, key: str = "corpus.text_field") -> bytes:
    """The UTF-8 of `field` in the JSON object that `data` holds. key: which names the field. Raises BadLine."""
    try:
        record = json.loads(data.decode("utf-8-sig"))  # the file may begin with a byte order mark
    except UnicodeDecodeError as error:
        raise BadLine(
            f"not UTF-8 at byte {error.start} of the line (corpus.encoding names another encoding)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON ({error})") from error
    text = _look_up(record, field, key)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadLine(f"an unpaired surrogate in the field {field!r}") from error


def _look_up(record: object, field: str, key: str) -> str:
    """A field by its whole name, else part by part. Raises BadLine that says what stands there instead of text."""
    if not isinstance(record, dict):
        raise BadLine(f"no text in the field {field!r} ({key}); it is {_named_type(record)}, no object")
    value: object = record
    parts = [field] if field in record else field.split(".")
    for number, part in enumerate(parts):
        above = ".".join(parts[:number]) or "it"
        if not isinstance(value, dict):
            raise BadLine(f"no text in the field {field!r} ({key}): {above} is {_named_type(value)}")
        if part not in value:
            keys = ", ".join(list(value)[:8])
            raise BadLine(f"no text in the field {field!r} ({key}); {above} has: {keys}")
        value = value[part]
    if not isinstance(value, str):
        raise BadLine(f"no text in the field {field!r} ({key}): it is {_named_type(value)}")
    return value


def _named_type(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"a number ({str(value)[:20]})"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]

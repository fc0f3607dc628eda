"""Pairs of texts, a sentence and its translation say, from parallel files or from files that hold both."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import IO, Literal

import pydantic

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, Paths, configclass
from data_pipeline.sources.compressed import open_compressed
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.sources.find import LeftOut, reading
from data_pipeline.sources.text import MAX_LINE_BYTES, BadLine, RawDocument, field_text

BORDER = "\n"  # between the two sides of a pair in one text: no side holds a line break
_COMPRESSED = ("", ".gz", ".zst")
_TSV = tuple(f".tsv{suffix}" for suffix in _COMPRESSED)
_JSONL = tuple(f".jsonl{suffix}" for suffix in _COMPRESSED)


@configclass
class PairsConfig(CorpusConfig):
    """Which pairs of texts are read, in UTF-8. A line break within a text is read as a space.

    source, target: parallel files, as in source=[train.en] target=[train.de]: their n-th lines are a pair. Instead of
        inputs.
    inputs: files that hold both: .tsv, whose first two columns are the pair, or .jsonl.
    source_field, target_field: the fields of .jsonl lines that hold the two; meta.text is the field text of meta.
    max_bad_lines: how many lines of inputs, all together, may be unreadable; they are skipped.
    """

    kind: Literal["pairs"]
    inputs: Paths = pydantic.Field(default_factory=list)
    source: Paths = pydantic.Field(default_factory=list)
    target: Paths = pydantic.Field(default_factory=list)
    source_field: str = "source"
    target_field: str = "target"
    max_bad_lines: NonNegative = 0


def sides(text: str) -> tuple[str, str]:
    """The source and the target of a pair's text."""
    source, _, target = text.partition(BORDER)
    return source, target


class PairsSource:
    """The pairs of a corpus, each as one text: source, BORDER, target. See RawSource."""

    def __init__(self, config: PairsConfig) -> None:
        """Raises InputError where the files are not named, or are not there."""
        if bool(config.inputs) == bool(config.source or config.target):
            raise InputError(
                "corpus=pairs reads either corpus.inputs=[pairs.tsv], files that hold both texts of a pair, or "
                "corpus.source=[train.en] corpus.target=[train.de], parallel files"
            )
        self._config = config
        self._parallel = _parallel(config)
        self._inputs = _found("corpus.inputs", config.inputs)
        for path in self._inputs:
            if not path.lower().endswith(_TSV + _JSONL):
                raise InputError(
                    f"corpus.inputs: {path} has an unsupported type; supported are {', '.join(_TSV + _JSONL)}"
                )
        self.files = [*self._inputs, *(path for pair in self._parallel for path in pair)]
        self._begin()

    def documents(self) -> Iterator[RawDocument]:
        """Every pair in the order of the files, from the beginning at each call. InputError names file and line."""
        self._begin()
        for source, target in self._parallel:
            yield from self._whole(self._of_two(source, target), f"{source} or {target}")
        for path in self._inputs:
            found = self._tsv(path) if path.lower().endswith(_TSV) else self._jsonl(path)
            yield from self._whole(found, path)

    def _begin(self) -> None:
        self.left_out, self.bad_lines, self.encodings, self.replaced = LeftOut(), list[str](), Counter[str](), 0

    def _whole(self, texts: Iterator[tuple[str, str]], path: str) -> Iterator[RawDocument]:
        with reading(path):
            try:
                for source, target in texts:
                    if source.strip() and target.strip():
                        yield RawDocument(f"{_one_line(source)}{BORDER}{_one_line(target)}", path)
                    else:
                        self.left_out.add("pairs with an empty side")
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(f"{path}: the compressed file is damaged or truncated ({error})") from error

    def _of_two(self, source: str, target: str) -> Iterator[tuple[str, str]]:
        with open_compressed(source) as first, open_compressed(target) as second:
            for number, (a, b) in enumerate(zip_longest(_lines(first, source), _lines(second, target)), 1):
                if a is None or b is None:
                    short, long = (source, target) if a is None else (target, source)
                    raise InputError(
                        f"{short} has {number - 1} lines and {long} more: parallel files have the same number, as "
                        "their n-th lines are a pair"
                    )
                yield _decoded(a, source, number), _decoded(b, target, number)

    def _tsv(self, path: str) -> Iterator[tuple[str, str]]:
        with open_compressed(path) as file:
            for number, line in enumerate(_lines(file, path), 1):
                columns = _decoded(line, path, number).split("\t")
                if len(columns) < 2:
                    self._count(f"{path}, line {number}: no tab, which separates the two texts")
                else:
                    yield columns[0], columns[1]

    def _jsonl(self, path: str) -> Iterator[tuple[str, str]]:
        names = (("corpus.source_field", self._config.source_field), ("corpus.target_field", self._config.target_field))
        with open_compressed(path) as file:
            for number, line in enumerate(_lines(file, path), 1):
                if not line.strip():
                    self.left_out.add("blank lines")
                    continue
                try:
                    source, target = (field_text(line, field, key).decode() for key, field in names)
                except BadLine as why:
                    self._count(f"{path}, line {number}: {why}")
                else:
                    yield source, target

    def _count(self, problem: str) -> None:
        self.bad_lines.append(problem)
        if len(self.bad_lines) > self._config.max_bad_lines:
            named = "\n".join(self.bad_lines[-5:])
            raise InputError(
                f"{named}\n{len(self.bad_lines)} unreadable lines, more than "
                f"corpus.max_bad_lines={self._config.max_bad_lines}"
            )


def _parallel(config: PairsConfig) -> list[tuple[str, str]]:
    sources, targets = _found("corpus.source", config.source), _found("corpus.target", config.target)
    if len(sources) != len(targets):
        raise InputError(
            f"corpus.source names {len(sources)} files and corpus.target {len(targets)}: each has its counterpart, in "
            "the same order"
        )
    return list(zip(sources, targets, strict=True))


def _found(key: str, entries: Sequence[str]) -> list[str]:
    """The files that `entries`, paths and globs, name, in their order."""
    found = []
    for entry in entries:
        with reading(entry):
            files = sorted(glob.glob(entry)) if glob.has_magic(entry) else [entry]
        if not files:
            raise InputError(f"{key}: {entry} matches no files")
        for path in files:
            with reading(path):
                os.stat(path)
            if not os.path.isfile(path):  # a pipe would never answer, a device never end
                raise InputError(f"{key}: {path} is no file")
            with reading(path):
                open(path, "rb").close()
        found += files
    return found


def _lines(file: IO[bytes], path: str) -> Iterator[bytes]:
    """Without their ends."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{path}: a line is longer than {MAX_LINE_BYTES} bytes")
        yield line.rstrip(b"\r\n")


def _decoded(line: bytes, path: str, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 at byte {error.start} ({error.reason})") from error


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))

"""Image sources: which files there are and what they show, from folders by class or from lists."""

from __future__ import annotations

import codecs
import csv
import glob
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, Paths, configclass
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.sources.find import LeftOut, entries_of, reading
from data_pipeline.sources.patterns import is_excluded
from data_pipeline.sources.tars import TAR_SUFFIX, Member, samples_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL = 1000  # characters
_MAX_LINE = 1 << 20  # characters of a list
_REPORTED = 10


@configclass
class ImagesConfig(CorpusConfig):
    """Which images are read.

    inputs: folders with one subfolder per class, lists (.csv and .tsv with a header line, .jsonl) of files and
        labels, or tars in WebDataset form, as in [photos/train], [labels.csv] or ['tars/*.tar'].
    exclude: patterns on absolute paths, as in ['*/thumbs/*']; * spans folders.
    file_field: the field of a list that names the image, relative to the list.
    label_field: the field of a list, or of a tar's .json, that holds the label.
    max_bad_images: how many images, all together, may be broken; they are skipped.
    """

    kind: Literal["images"]
    inputs: Paths
    exclude: Paths = Field(default_factory=list)
    file_field: str = "file"
    label_field: str = "label"
    max_bad_images: NonNegative = 10


class LabeledFile(NamedTuple):
    """An image: a file, or a member of a tar."""

    path: str
    label: str
    member: Member | None = None

    def __str__(self) -> str:
        return self.path if self.member is None else str(self.member)


@dataclass(frozen=True)
class _Reader:
    """config: what is read. skip: a folder that is not, the output. left_out: what was found and is not read."""

    config: ImagesConfig
    skip: str | None
    left_out: LeftOut


def labeled_files(config: ImagesConfig, left_out: LeftOut, skip: str | None = None) -> list[LabeledFile]:
    """Every image with its label, sorted by path. Raises InputError that lists the first problems of every input."""
    if not config.inputs:
        raise InputError("corpus.inputs is empty: give folders with a subfolder per class, lists, or tars")
    reader = _Reader(config, skip, left_out)
    return _without_repeats(_gather(_from_input, ((entry, reader) for entry in config.inputs)), left_out)


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in the order of their numbers: by value where all are whole numbers, else by name."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        # As numbers, but without making any: Python refuses those of more than 4300 digits.
        return tuple(sorted(distinct, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)))
    return tuple(sorted(distinct))


def _gather(read: Callable[..., list[LabeledFile]], parts: Iterable[tuple[Any, ...]]) -> list[LabeledFile]:
    """What `read` finds in every part. Where parts have problems, an InputError lists the first of them."""
    found: list[LabeledFile] = []
    problems: list[str] = []
    for part in parts:
        try:
            found += read(*part)
        except InputError as error:
            problems.append(str(error))
    if problems:
        more = [f"... and {len(problems) - _REPORTED} more like these"] if len(problems) > _REPORTED else []
        raise InputError("\n".join([*problems[:_REPORTED], *more]))
    return found


def _from_input(entry: str, reader: _Reader) -> list[LabeledFile]:
    path = Path(entry)
    if path.is_dir():
        return _from_folder(path, reader)
    tars = sorted(glob.glob(str(path))) if glob.has_magic(entry) and not path.exists() else [str(path)]
    if not tars:
        raise InputError(f"corpus.inputs: {entry} matches no files")
    if all(tar.lower().endswith(TAR_SUFFIX) and os.path.isfile(tar) for tar in tars):
        return _gather(_from_tar, ((tar, reader) for tar in tars))
    if len(tars) > 1:
        raise InputError(f"corpus.inputs: {entry} matches files that are no tars; globs are for tars")
    return _from_list(Path(tars[0]), reader)


def _from_folder(folder: Path, reader: _Reader) -> list[LabeledFile]:
    entries = [e for e in _visible(folder, reader) if not _holds_only(e, reader.skip)]
    loose = [e.name for e in entries if not e.is_dir()]
    if loose:
        raise InputError(
            f"corpus.inputs: {folder} contains files next to its class folders "
            f"({', '.join(loose[:_REPORTED])}); give a folder with one subfolder per class, or a list "
            "of files and labels"
        )
    if not entries:
        raise InputError(f"corpus.inputs: {folder} contains no class folders")
    return _gather(_from_class, ((entry, reader) for entry in entries))


def _from_class(folder: Path, reader: _Reader) -> list[LabeledFile]:
    entries = _visible(folder, reader)
    if not entries:
        raise InputError(f"corpus.inputs: the class folder {folder} is empty")
    for entry in entries:
        if entry.is_dir():
            raise InputError(
                f"corpus.inputs: the class folder {folder} contains a folder ({entry.name}); give the folder "
                "whose subfolders are the classes"
            )
    return _gather(_labeled, ((entry, _printable(folder.name), "corpus.inputs") for entry in entries))


def _from_tar(tar: str, reader: _Reader) -> list[LabeledFile]:
    found = _gather(_from_sample, ((sample, reader) for sample in samples_of(tar, reader.left_out)))
    if not found:
        raise InputError(f"corpus.inputs: {tar} holds no images ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def _from_sample(sample: Mapping[str, Member], reader: _Reader) -> list[LabeledFile]:
    """The image of one sample, none where it has none, with what its .cls, .json or .txt says."""
    images = [member for member in sample.values() if f".{member.kind}" in IMAGE_SUFFIXES]
    if not images:
        reader.left_out.add(f"samples of tars without {', '.join(IMAGE_SUFFIXES)}")
        return []
    if is_excluded(os.path.join(images[0].tar, images[0].name), reader.config.exclude):
        reader.left_out.add("files that corpus.exclude matches")
        return []
    label = _label_of(sample, reader.config.label_field)
    if label is None:
        raise InputError(
            f"{images[0]} has no label: neither .cls, nor .json with {reader.config.label_field!r}, nor .txt"
        )
    return [LabeledFile(image.tar, label, image) for image in images]


def _label_of(sample: Mapping[str, Member], field: str) -> str | None:
    by_kind = {member.kind: member for member in sample.values()}
    label: object = None
    for kind in ("cls", "json", "txt"):
        if kind not in by_kind or label is not None:
            continue
        data = by_kind[kind].read(_MAX_LABEL_BYTES)
        try:
            label = _field(json.loads(data), field) if kind == "json" else data.decode().strip()
        except (ValueError, RecursionError) as error:
            raise InputError(f"{by_kind[kind]} cannot be read: {error}") from error
    return None if label is None else _checked_label(str(next(iter(sample.values()))), label)


def _has_field(record: Mapping[str, object], field: str) -> bool:
    above, _, name = field.rpartition(".")
    inner = _field(record, above) if above else None
    return field in record or (isinstance(inner, dict) and name in inner)


def _field(record: object, field: str) -> object:
    """By its whole name, else part by part; None where there is none."""
    for part in [field] if isinstance(record, dict) and field in record else field.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _labeled(path: Path, label: str, place: str) -> list[LabeledFile]:
    """place: what named the file, for the message."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(
            f"{place}: {path} has an unsupported type; supported are {', '.join(IMAGE_SUFFIXES)} "
            "(corpus.exclude skips files)"
        )
    return [LabeledFile(str(path), label)]


def _printable(name: str) -> str:
    r"""A folder's name as a label: a byte that is not UTF-8 becomes the four characters \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _visible(folder: Path, reader: _Reader) -> list[Path]:
    """What is in `folder`, without hidden entries and those that a pattern of corpus.exclude matches."""
    entries = [Path(entry.path) for entry in entries_of(str(folder), reader.left_out, reader.skip)]
    wanted = [entry for entry in entries if not is_excluded(entry, reader.config.exclude)]
    reader.left_out.add("files and folders that corpus.exclude matches", len(entries) - len(wanted))
    return wanted


def _holds_only(folder: Path, inner: str | None) -> bool:
    """Whether `folder` leads to the folder `inner` (a real path) and to nothing else: it is no class."""
    real = os.path.realpath(folder)
    if inner is None or not inner.startswith(real + os.sep):
        return False
    with reading(real):
        names = [name for name in os.listdir(real) if not name.startswith(".")]
    child = os.path.join(real, names[0]) if names else ""
    return len(names) == 1 and (child == inner or _holds_only(Path(child), inner))


def _from_list(path: Path, reader: _Reader) -> list[LabeledFile]:
    if not path.is_file():
        raise InputError(f"corpus.inputs: {path} does not exist")
    if path.suffix.lower() not in LIST_SUFFIXES:
        raise InputError(f"corpus.inputs: {path} is not a list; supported are {', '.join(LIST_SUFFIXES)}")
    found = _gather(_from_line, ((path, line, record, reader) for line, record in _records(path, reader.config)))
    if not found:
        raise InputError(f"corpus.inputs: {path} lists no images")
    return found


def _from_line(path: Path, line: int, record: dict[str, object], reader: _Reader) -> list[LabeledFile]:
    """One file, or none where corpus.exclude matches it."""
    config = reader.config
    name, label = _field(record, config.file_field), _field(record, config.label_field)
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}, line {line}: {config.file_field}={name!r} does not name a file")
    image = path.parent / name
    if is_excluded(image, config.exclude):
        reader.left_out.add("files that corpus.exclude matches")
        return []
    checked = _checked_label(f"{path}, line {line}: {config.label_field}={label!r}", label)
    if not image.is_file():
        raise InputError(f"{path}, line {line}: {image} does not exist")
    return _labeled(image, checked, f"{path}, line {line}")


def _checked_label(place: str, label: object) -> str:
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise InputError(f"{place} is not a label; use a name or a number")
    if len(str(label)) > _MAX_LABEL:
        raise InputError(f"{place[:200]}... is no label: it has {len(str(label))} characters, more than {_MAX_LABEL}")
    if len(str(label).splitlines()) > 1:
        raise InputError(f"{place} has a line break in its label; is a quote not closed?")
    return str(label).encode("utf-8", "backslashreplace").decode()


def _records(path: Path, config: ImagesConfig) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number, fields) of each entry. Raises InputError at the first that lacks a field."""
    for line, record in _parsed(path):
        if not all(_has_field(record, field) for field in (config.file_field, config.label_field)):
            raise InputError(
                f"{path}, line {line}: needs the fields {config.file_field!r} (corpus.file_field) and "
                f"{config.label_field!r} (corpus.label_field); it has: {', '.join(record)}"
            )
        yield line, record


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with reading(path), open(path, encoding="utf-8-sig", newline="") as content:
        file = _lines(content)
        try:
            if path.suffix.lower() == ".jsonl":
                for number, text in enumerate(file, start=1):
                    if text.strip():
                        record = json.loads(text)
                        yield number, record if isinstance(record, dict) else {}
            elif path.suffix.lower() == ".tsv":
                yield from _tab_separated(file)
            else:
                # strict: a quote that is not closed would swallow the lines that follow
                rows = csv.DictReader(file, strict=True, skipinitialspace=True)
                for row in rows:
                    yield rows.line_num, {str(key): value for key, value in row.items()}
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 ({error.reason} at byte {error.start}): rewrite it, as by "
                f"`iconv -f {'UTF-16' if _is_utf16(path) else 'LATIN1'} -t UTF-8 {shlex.quote(str(path))}`"
            ) from error
        except (ValueError, RecursionError, csv.Error) as error:
            raise InputError(f"{path} cannot be read: {error}") from error


def _is_utf16(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a list. Raises ValueError for one that is too long to be one."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"a line has more than {_MAX_LINE} characters")
        yield line


def _tab_separated(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """Lines and tabs separate, whatever quotes there are; only a field that is quoted as a whole loses its quotes."""
    header: list[str] = []
    for number, line in enumerate(lines, start=1):
        fields = [_unquoted(field) for field in line.rstrip("\r\n").split("\t")]
        if not header:
            header = fields
        elif line.strip():
            yield number, {**dict.fromkeys(header), **dict(zip(header, fields, strict=False))}


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field


def _without_repeats(files: list[LabeledFile], left_out: LeftOut) -> list[LabeledFile]:
    """Sorted; a file that is named twice counts once. InputError where its labels differ."""
    real = {path: os.path.realpath(path) for path in {file.path for file in files}}
    by_place: dict[tuple[str, int], LabeledFile] = {}
    for file in sorted(files, key=lambda f: (f.path, f.member.offset if f.member else 0, f.label)):
        first = by_place.setdefault((real[file.path], file.member.offset if file.member else 0), file)
        if first.label != file.label:
            raise InputError(f"corpus.inputs: {file} has two labels, {first.label!r} and {file.label!r}")
        if first is not file:
            left_out.add("files that are named again")
    return list(by_place.values())

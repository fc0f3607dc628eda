"""Image sources: which files there are and what they show, from folders by class or from lists."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from data_pipeline.common.errors import InputError
from data_pipeline.common.fields import NonNegative, configclass
from data_pipeline.sources.config import CorpusConfig
from data_pipeline.sources.patterns import is_excluded

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_REPORTED = 10


@configclass
class ImagesConfig(CorpusConfig):
    """Which images are read.

    inputs: folders with one subfolder per class, or lists (.csv and .tsv with a header line, .jsonl) of files and
        labels, as in [photos/train] or [labels.csv].
    exclude: patterns on absolute paths, as in ['*/thumbs/*']; * spans folders.
    file_field: the field of a list that names the image, relative to the list.
    label_field: the field of a list that holds the label.
    max_bad_images: how many images, all together, may be broken; they are skipped.
    """

    kind: Literal["images"]
    inputs: list[str]
    exclude: list[str] = Field(default_factory=list)
    file_field: str = "file"
    label_field: str = "label"
    max_bad_images: NonNegative = 10


class LabeledFile(NamedTuple):
    path: str
    label: str


def labeled_files(config: ImagesConfig) -> list[LabeledFile]:
    """Every image with its label, sorted by path. Raises InputError that lists the first problems of every input."""
    if not config.inputs:
        raise InputError("corpus.inputs is empty: give folders with a subfolder per class, or lists")
    return _without_repeats(_gather(_from_input, ((entry, config) for entry in config.inputs)))


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in the order of their numbers: by value where all are whole numbers, else by name."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
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


def _from_input(entry: str, config: ImagesConfig) -> list[LabeledFile]:
    path = Path(os.path.expanduser(entry))
    return _from_folder(path, config.exclude) if path.is_dir() else _from_list(path, config)


def _from_folder(folder: Path, exclude: list[str]) -> list[LabeledFile]:
    entries = _visible(folder, exclude)
    loose = [e.name for e in entries if not e.is_dir()]
    if loose:
        raise InputError(
            f"corpus.inputs: {folder} contains files next to its class folders "
            f"({', '.join(loose[:_REPORTED])}); give a folder with one subfolder per class, or a list "
            "of files and labels"
        )
    if not entries:
        raise InputError(f"corpus.inputs: {folder} contains no class folders")
    return _gather(_from_class, ((entry, exclude) for entry in entries))


def _from_class(folder: Path, exclude: list[str]) -> list[LabeledFile]:
    entries = _visible(folder, exclude)
    if not entries:
        raise InputError(f"corpus.inputs: the class folder {folder} is empty")
    for entry in entries:
        if entry.is_dir():
            raise InputError(
                f"corpus.inputs: the class folder {folder} contains a folder ({entry.name}); give the folder "
                "whose subfolders are the classes"
            )
    return _gather(_labeled, ((entry, folder.name) for entry in entries))


def _labeled(path: Path, label: str) -> list[LabeledFile]:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(
            f"corpus.inputs: {path} has an unsupported type; supported are {', '.join(IMAGE_SUFFIXES)} "
            "(corpus.exclude skips files)"
        )
    return [LabeledFile(str(path), label)]


def _visible(folder: Path, exclude: list[str]) -> list[Path]:
    """What is in `folder`, without hidden entries and those that a pattern of `exclude` matches."""
    entries = sorted(e for e in folder.iterdir() if not e.name.startswith("."))
    return [e for e in entries if not is_excluded(e, exclude)]


def _from_list(path: Path, config: ImagesConfig) -> list[LabeledFile]:
    if not path.is_file():
        raise InputError(f"corpus.inputs: {path} does not exist")
    if path.suffix not in LIST_SUFFIXES:
        raise InputError(f"corpus.inputs: {path} is not a list; supported are {', '.join(LIST_SUFFIXES)}")
    found = _gather(_from_line, ((path, line, record, config) for line, record in _records(path, config)))
    if not found:
        raise InputError(f"corpus.inputs: {path} lists no images")
    return found


def _from_line(path: Path, line: int, record: dict[str, object], config: ImagesConfig) -> list[LabeledFile]:
    """One file, or none where corpus.exclude matches it."""
    name, label = record[config.file_field], record[config.label_field]
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}, line {line}: {config.file_field}={name!r} does not name a file")
    image = path.parent / name
    if is_excluded(image, config.exclude):
        return []
    if not isinstance(label, str | int) or isinstance(label, bool) or not str(label).strip():
        raise InputError(f"{path}, line {line}: {config.label_field}={label!r} is not a label; use a name or a number")
    if not image.is_file():
        raise InputError(f"{path}, line {line}: {image} does not exist")
    return _labeled(image, str(label))


def _records(path: Path, config: ImagesConfig) -> Iterator[tuple[int, dict[str, object]]]:
    """(line number, fields) of each entry. Raises InputError at the first that lacks a field."""
    for line, record in _parsed(path):
        if not {config.file_field, config.label_field} <= record.keys():
            raise InputError(
                f"{path}, line {line}: needs the fields {config.file_field!r} (corpus.file_field) and "
                f"{config.label_field!r} (corpus.label_field); it has: {', '.join(record)}"
            )
        yield line, record


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            if path.suffix == ".jsonl":
                for number, text in enumerate(file, start=1):
                    if text.strip():
                        record = json.loads(text)
                        yield number, record if isinstance(record, dict) else {}
            else:
                rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                for row in rows:
                    yield rows.line_num, {str(key): value for key, value in row.items()}
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path} cannot be read: {error}") from error


def _without_repeats(files: list[LabeledFile]) -> list[LabeledFile]:
    """Sorted; a file that is named twice counts once. InputError where its labels differ."""
    by_path: dict[str, LabeledFile] = {}
    for file in sorted(files):
        first = by_path.setdefault(os.path.realpath(file.path), file)
        if first.label != file.label:
            raise InputError(f"corpus.inputs: {file.path} has two labels, {first.label!r} and {file.label!r}")
    return list(by_path.values())

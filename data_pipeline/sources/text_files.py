"""Which files of text the inputs of a corpus name."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from data_pipeline.common.errors import InputError
from data_pipeline.sources.find import LeftOut, files_below, reading, suffix_kind
from data_pipeline.sources.patterns import is_excluded
from data_pipeline.sources.tars import TAR_SUFFIX

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_IN_FOLDERS = TEXT_SUFFIXES + JSONL_SUFFIXES
_SUFFIXES = (*_IN_FOLDERS, TAR_SUFFIX)


def find_files(inputs: list[str], exclude: list[str], left_out: LeftOut, skip: str | None = None) -> dict[str, int]:
    """The files that `inputs` name, sorted, each with the number of the input that named it last. Raises InputError
    that lists every input without files."""
    found: dict[str, tuple[str, int]] = {}
    problems: list[str] = []
    if not inputs:
        problems.append("corpus.inputs is empty: give files, globs or folders")
    for number, entry in enumerate(inputs):
        here = LeftOut()
        try:
            files = list(_wanted(_expand(entry, here, skip), exclude, here))
        except InputError as error:
            problems.append(str(error))
            continue
        if not files:
            problems.append(
                f"corpus.inputs: {entry} has no files ending in {', '.join(_IN_FOLDERS)}"
                + (f" ({here})" if str(here) else "")
            )
        for file in sorted(files, reverse=True):
            found[os.path.realpath(file)] = file, number
        left_out.update(here)
    if problems:
        raise InputError("\n".join(problems))
    return dict(sorted(found.values()))


def _wanted(files: Iterator[str], exclude: list[str], left_out: LeftOut) -> Iterator[str]:
    for file in files:
        if is_excluded(file, exclude):
            left_out.add("files that corpus.exclude matches")
        else:
            yield file


def _expand(entry: str, left_out: LeftOut, skip: str | None) -> Iterator[str]:
    if os.path.isfile(entry):
        if not entry.lower().endswith(_SUFFIXES):
            raise InputError(f"corpus.inputs: {entry} has an unsupported type; supported are {', '.join(_SUFFIXES)}")
        yield entry
    elif os.path.isdir(entry):
        yield from _text_files(files_below(entry, left_out, skip), _IN_FOLDERS, left_out)
    elif not glob.has_magic(entry):
        raise InputError(_why_nothing(entry))
    else:
        yield from _matches(entry, left_out, skip)


def _matches(pattern: str, left_out: LeftOut, skip: str | None) -> Iterator[str]:
    _check_readable(pattern)
    matches = [m for m in glob.glob(pattern, recursive=True) if not _is_within(m, skip)]
    if not matches:
        raise InputError(f"corpus.inputs: {pattern} matches no files")
    names_all = pattern.rstrip("/").endswith("**")  # the files in the folders that it matches too
    files: list[str] = []
    for match in matches:
        if not os.path.isdir(match):
            files.append(match)
        elif not names_all:
            yield from _text_files(files_below(match, left_out, skip), _IN_FOLDERS, left_out)
    yield from _text_files(iter(files), _SUFFIXES, left_out)


def _check_readable(pattern: str) -> None:
    """Raises InputError where a folder that the pattern leads into cannot be read: glob passes over it."""
    folder = os.path.dirname(pattern)
    if glob.has_magic(folder):
        _check_readable(folder)
    for match in glob.glob(folder or ".", recursive=True):
        if os.path.isdir(match):
            with reading(match):
                os.scandir(match).close()


def _why_nothing(path: str) -> str:
    """For a name that is no file and no folder."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"corpus.inputs: {path} does not exist"
    except OSError as error:
        return f"corpus.inputs: {path} cannot be read: {error.strerror}"
    return f"corpus.inputs: {path} is neither a file nor a folder"


def _is_within(path: str, folder: str | None) -> bool:
    real = os.path.realpath(path)
    return folder is not None and (real == folder or real.startswith(folder + os.sep))


def _text_files(files: Iterator[str], suffixes: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
    for file in files:
        if not os.path.isfile(file):
            left_out.add("sockets, pipes and devices" if os.path.exists(file) else "dangling links")
        elif file.lower().endswith(suffixes):
            yield file
        elif file.lower().endswith(TAR_SUFFIX):
            left_out.add("tars, which are read where they are named, as in 'folder/*.tar'")
        else:
            left_out.add(suffix_kind(file))

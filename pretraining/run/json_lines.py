"""Files of a run's folder that hold one JSON object a line, are appended to and never cut."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import append_file, open_file, read_bytes
from data_pipeline.common.json_files import parse_json

LARGEST_LINE = 1 << 24  # characters; what is longer was not written here
Entry = dict[str, Any]


def read_lines(path: Path) -> list[Entry]:
    """All whole objects; none where there is no file. Raises InputError where it cannot be read."""
    try:
        texts = read_bytes(path, links=False).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    entries = []
    for text in texts:
        with suppress(ValueError):  # torn: the process was killed while writing it
            entry = parse_json(text) if len(text) <= LARGEST_LINE else None
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def append_line(path: Path, entry: Entry) -> None:
    """Raises OSError. The line is on the disk when this returns; one that was torn before it stays alone."""
    if path.is_symlink():
        raise OSError(f"{path} is a link")
    torn = path.exists() and path.stat().st_size > 0 and not _ends_whole(path)
    with append_file(path) as file:
        file.write((("\n" if torn else "") + json.dumps(entry) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    with open_file(path, links=False) as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

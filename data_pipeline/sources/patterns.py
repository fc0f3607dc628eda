"""`corpus.exclude`: which files are left out."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path


def is_excluded(path: str | os.PathLike[str], patterns: Sequence[str]) -> bool:
    """Whether a pattern (fnmatch; `*` spans folders) matches the absolute path."""
    absolute = Path(os.path.abspath(path)).as_posix()
    return any(fnmatch.fnmatchcase(absolute, pattern) for pattern in patterns)

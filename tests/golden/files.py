"""sha256 of every file that `pretrain-data` writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.golden.runs import Data

KIND = "files"
CASES = ["images", "text"]
# plan.json is for continuing what was begun, and holds paths and times; the lock is empty
NOT_DATA = (".lock", "plan.json")


def compute(case: str, data: Data) -> dict[str, str]:
    """-> {path below the prepared folder: sha256}."""
    folder: Path = getattr(data, case)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_DATA]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

"""sha256 of every file that `pretrain-data` writes."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from tests.golden.corpora import PREPARED, prepare_case
from tests.golden.runs import Data

KIND = "files"
CASES = list(PREPARED)
# plan.json is for continuing what was begun, and holds paths and times; the lock is empty
NOT_DATA = (".lock", "plan.json")


def compute(case: str, data: Data) -> dict[str, str]:
    """-> {path below the prepared folder: sha256}."""
    if case in ("images", "pairs", "text"):  # these are there already: batches are made of them
        return hashes(getattr(data, case))
    with tempfile.TemporaryDirectory() as folder:
        return hashes(prepare_case(case, data.sources, Path(folder) / "prepared"))


def hashes(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_DATA]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

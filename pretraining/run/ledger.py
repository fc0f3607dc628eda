"""run_dir/ledger.jsonl: batches that were skipped, that spiked or were passed over, and how starts ended by a fault.

It is appended to and never cut: a run that goes on from an older checkpoint obeys it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.common.errors import InputError
from data_pipeline.common.files import append_file, open_file, read_bytes
from data_pipeline.common.json_files import parse_json

LEDGER = "ledger.jsonl"
LARGEST_LINE = 1 << 24  # characters; what is longer was not written here
Entry = dict[str, Any]


class Ledger:
    """The lines of one run's ledger; each has a `kind`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LEDGER

    def read(self, kind: str) -> list[Entry]:
        """All whole lines of a kind. Raises InputError where the file cannot be read."""
        try:
            texts = read_bytes(self.path, links=False).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
        entries = []
        for text in texts:
            with suppress(ValueError):  # torn: the process was killed while writing it
                entry = parse_json(text) if len(text) <= LARGEST_LINE else None
                if isinstance(entry, dict) and entry.get("kind") == kind:
                    entries.append(entry)
        return entries

    def append(self, entry: Entry) -> None:
        """Raises OSError. The line is on the disk when this returns; one that was torn before it stays alone."""
        if self.path.is_symlink():
            raise OSError(f"{self.path} is a link")
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self._ends_whole()
        with append_file(self.path) as file:
            file.write((("\n" if torn else "") + json.dumps(entry) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with open_file(self.path, links=False) as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def fault(self, job: str, fault: str, step: int, start_step: int, reason: str) -> bool:
        """Records how a start ended -> whether the start before ended by the same fault at the same step.

        step: the one that was being trained: none was saved since that would have begun beyond it. start_step: of the
        checkpoint that the start went on from."""
        entry = {"kind": "fault", "job": job, "fault": fault, "step": step, "start_step": start_step, "reason": reason}
        try:
            before = [e for e in self.read("fault") if e.get("job") != job]
            self.append(entry)
        except (OSError, InputError):  # it is the end that matters, not its record
            return False
        return bool(before) and all(before[-1].get(key) == entry[key] for key in ("fault", "step"))

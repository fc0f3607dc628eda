"""run_dir/ledger.jsonl: batches that were skipped, that spiked or were passed over, and how starts ended by a fault.

It is appended to and never cut: a run that goes on from an older checkpoint obeys it.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.common.errors import InputError
from pretraining.run.json_lines import Entry, append_line, read_lines

LEDGER = "ledger.jsonl"


class Ledger:
    """The lines of one run's ledger; each has a `kind`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LEDGER

    def read(self, kind: str) -> list[Entry]:
        """All whole lines of a kind. Raises InputError where the file cannot be read."""
        return [entry for entry in read_lines(self.path) if entry.get("kind") == kind]

    def append(self, entry: Entry) -> None:
        """Raises OSError. The line is on the disk when this returns."""
        append_line(self.path, entry)

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

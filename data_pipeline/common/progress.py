"""How far along a pass over a corpus is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


def terminal_bar(
    total: int | None, unit: str, title: str | None = None, initial: int = 0, layout: str | None = None
) -> Any:
    """A tqdm bar on standard error, or None where that is not a terminal: a log file wants lines.

    Bytes (unit "B") are shown as kB or MB. A bar with a title is of a passing stage and vanishes at its end. layout: as
    tqdm's bar_format.
    """
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(
        desc=title,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit == "B",
        leave=title is None,
        dynamic_ncols=True,
        bar_format=layout,
    )


def counted(number: int, one: str, several: str = "") -> str:
    """1 shard, 2 shards; several: the plural where it is not `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"


class PassProgress:
    """Counts the documents (or images) of one pass, and their bytes, while its `with` block lasts."""

    def __init__(self, title: str, total_bytes: int | None) -> None:
        self._title, self._total = title, total_bytes
        self._documents = self._bytes = 0
        self._started = self._reported = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> PassProgress:
        self._bar = terminal_bar(self._total, "B", self._title)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, size: int) -> None:
        """One more document, of `size` bytes."""
        self._documents += 1
        self._bytes += size
        if self._bar is not None:
            self._bar.set_postfix_str(f"{counted(self._documents, 'document')}", refresh=False)
            self._bar.update(size)
        elif time.monotonic() - self._reported > _SECONDS_BETWEEN_LINES:
            self._reported = time.monotonic()
            print(self._line(), flush=True)

    def _line(self) -> str:
        total = f" of {self._total / 1e6:.1f}" if self._total is not None else ""
        rate = self._bytes / 1e6 / (self._reported - self._started)
        return (
            f"{self._title}: {counted(self._documents, 'document')}, {self._bytes / 1e6:.1f}{total} MB, {rate:.1f} MB/s"
        )

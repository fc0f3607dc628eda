"""How far a pass over the corpus is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts documents and bytes of text while its `with` block lasts."""

    def __init__(self, title: str, total_bytes: int | None) -> None:
        self._title, self._total = title, total_bytes
        self._documents = self._bytes = 0
        self._started = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=self._title, total=self._total, unit="B", unit_scale=True, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, text_bytes: int) -> None:
        """One more document, of `text_bytes`."""
        self._documents += 1
        self._bytes += text_bytes
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._documents} documents", refresh=False)
            self._bar.update(text_bytes)
        elif time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            print(self._line(), flush=True)

    def _line(self) -> str:
        share = f" of {self._total / 1e6:.1f}" if self._total is not None else ""
        rate = self._bytes / 1e6 / (self._told - self._started)
        return f"{self._title}: {self._documents} documents, {self._bytes / 1e6:.1f}{share} MB, {rate:.1f} MB/s"

"""What is told to whoever watches: on a terminal, or into a file or pipe that may be full or closed. Training goes on
without."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

_told: set[str] = set()  # a process has one standard output, and one warning is enough


def tell(text: str) -> None:
    """A line of standard output."""
    _write(text, sys.stdout, "standard output")


def warn(text: str) -> None:
    """A line of standard error."""
    _write(text, sys.stderr, "standard error")


def warn_once(subject: str, text: str) -> None:
    """Of each subject the first warning alone."""
    if subject not in _told:
        _told.add(subject)
        warn(f"warning: {text}")


def flush_streams() -> None:
    """At the end of a process."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed, as by `>&-`
            with contextlib.suppress(OSError):
                stream.flush()


def _write(text: str, stream: TextIO | None, name: str) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # whoever read it, as `head` does, has ended: from here on nothing is written to it
        _close(stream)
        warn_once(name, f"{name} is closed: training goes on, and is told in run_dir/metrics.jsonl")
    except OSError as error:  # a full disk: what could not be written stays in the buffer, and is tried again
        if name != "standard error":
            warn_once(name, f"{name} cannot be written to ({error.strerror or error}): training goes on")


def _close(stream: TextIO | None) -> None:
    """By its number: what libraries write to it goes nowhere as well."""
    if stream is not None:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

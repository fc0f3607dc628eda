"""run_dir/ranks/end.json: the exit code that one rank has found for all, so that a launcher, which takes any rank's
code, does not take another one."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pretraining.run.beats import read_values, write_values

END = "end.json"
LISTEN_SECONDS = 15.0  # which the rank that speaks may take longer than the others; it may be gone as well
POLL_SECONDS = 0.2


def tell_code(folder: Path, job: str, code: int) -> None:
    """job: of this start; what an earlier one said is not heard."""
    with suppress(OSError):  # on a full disk the ranks end with codes of their own
        write_values(folder / END, {"job": job, "code": code})


def heard_code(folder: Path, job: str, own: int) -> int:
    """What another rank told, within LISTEN_SECONDS; else `own`."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = read_values(folder / END)
            if told["job"] == job:
                return int(told["code"])
        time.sleep(POLL_SECONDS)
    return own

"""What a rank says of itself while it trains: run_dir/ranks/rank_00000.json, where it is, and that it lives."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.common.json_files import typed
from data_pipeline.common.plain_files import open_plain

LARGEST = 1 << 20  # bytes of a file here; a longer one was not written by this program


@dataclass
class Beat:
    """What a rank says of itself. job: of this start; files of an earlier one say nothing.

    number: of the beat, so that clocks of hosts are never compared. seconds: in this phase. ended: why, where it did by
    itself; lost: it waited for another rank that never came.
    """

    job: str
    rank: int
    ranks: int
    host: str
    pid: int
    number: int
    step: int
    phase: str
    entered: int
    seconds: float
    stack: list[str]
    ended: str | None = None
    lost: bool = False


def read_values(path: Path) -> dict[str, Any]:
    """Raises OSError and ValueError: where it is no plain file (a pipe would never answer), or holds no dictionary."""
    with os.fdopen(open_plain(path, links=False), "rb") as file:
        values = json.loads(file.read(LARGEST))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no dictionary")
    return values


def read_beat(path: Path) -> Beat | None:
    """None where the rank has written none that can be read."""
    try:
        return typed(read_values(path), Beat, path.name)
    except (OSError, ValueError, RecursionError):  # an InputError is a ValueError
        return None


def write_values(path: Path, values: dict[str, object], name: str = "") -> None:
    """Atomically, but not flushed: nothing of it need outlive the machine. A new file: no link is followed."""
    temporary = path.with_name(f".{path.name}{name}.tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x") as file:
        json.dump(values, file)
    os.replace(temporary, path)


def host() -> str:
    """This host, as far as process ids mean the same."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def is_gone(beat: Beat) -> bool:
    """Whether the rank's process has ended; False also where it is on another host, of which nothing is known."""
    if beat.host != host():
        return False
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return Path("/proc/self/stat").exists()
    return state in "ZX"


def place(beat: Beat, seen: str = "is") -> str:
    return f"rank {beat.rank} ({beat.host.split()[0]}, pid {beat.pid}) {seen} in {beat.phase} of step {beat.step}"


def lost_text(beats: Sequence[Beat], step: int) -> str:
    """step: of a rank that lives: a beat is up to a second old."""
    ranks = " and ".join(f"rank {beat.rank} ({beat.host.split()[0]}, pid {beat.pid})" for beat in beats)
    return f"{ranks} died without a word in step {step}: killed, or out of memory"


def lost_fault(beats: Sequence[Beat]) -> str:
    """What makes it the same one: a batch that takes too much memory kills the rank that it falls to."""
    return f"lost {' '.join(str(beat.rank) for beat in beats)}"


def silent_text(beat: Beat) -> str:
    return f"{place(beat, 'was last seen')} and gives no sign of life: it is stopped, or its host is gone"


def is_in_collective(beat: Beat) -> bool:
    return any(frame.startswith("distributed_c10d.py") for frame in beat.stack)


def stack_text(beat: Beat) -> str:
    return f"stack, innermost last: {' > '.join(beat.stack)}" if beat.stack else "its stack is not known"

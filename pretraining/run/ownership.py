"""One job at a time trains in a run_dir: it owns the folder by a file in it, and touches the file as long as it lives.

run_dir/owner.N.json says who: host, pid, job. The owner is that of the highest number. The file is made with O_EXCL,
which one process alone can do, on network file systems too (locks are not to be relied on there). A job that takes over
from one that is gone makes the next number, so that of two that try exactly one does. The time of modification is the
heartbeat; it is compared with that of a file made just now, by the clock of the same file system.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.common.errors import Failure, InputError

BEAT_SECONDS = 10.0
# Without a beat for so long an owner is gone. Longer than network file systems keep what they know of a file (60 s).
STALE_SECONDS = 120.0
TELL_SECONDS = 15.0  # of waiting for a sign of life, until it is told; a living owner gives one in BEAT_SECONDS
_NAME = re.compile(r"owner\.(\d{1,10})\.json")


class LostOwnership(Failure):
    """Another job has taken over the run_dir: nothing may be written to it any more."""


@dataclass(frozen=True)
class Owner:
    """What a job says of itself. machine: kernel boot and process namespace within which pid means something.
    process_start: of that pid, in clock ticks, since numbers are used again. restart: of a scheduler's requeued job."""

    host: str
    pid: int
    job: str = ""
    restart: str = ""
    machine: str = ""
    process_start: str = ""
    started: str = ""
    token: str = ""

    @classmethod
    def this_job(cls) -> Owner:
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=os.environ.get("SLURM_RESTART_COUNT", ""),
            machine=_machine(),
            process_start=_process_start(os.getpid()),
            started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            token=uuid.uuid4().hex,
        )

    def is_gone(self, job: Owner) -> str:
        """Why it can't be alive, as `job` knows at once; "" where only its heartbeat can tell."""
        if self.machine and self.machine == job.machine and _process_start(self.pid) != self.process_start:
            return "its process is gone"
        if self.job and self.job == job.job and self.restart != job.restart:
            return "the job was requeued"
        return ""

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}, since {self.started}"


@dataclass(frozen=True)
class _Claim:
    """A file by which a job owns, or owned, the folder. owner: None where it is empty yet, or unreadable."""

    number: int
    path: Path
    owner: Owner | None
    beat: float
    age: float


class Ownership:
    """This job's, until `release`. Raises InputError where another job has the folder."""

    def __init__(self, run_dir: Path, tell: Callable[[str], None], lost: Callable[[str], None]) -> None:
        """tell: of a takeover, and of waiting for one. lost: called by the heartbeat's thread where another job has
        taken over."""
        self.run_dir, self.owner, self.lost = run_dir, Owner.this_job(), lost
        try:
            self.number, self.file = _acquire(run_dir, self.owner, tell)
        except OSError as error:
            raise InputError(f"run_dir={run_dir} cannot be owned: {error}") from error
        self.released = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="ownership").start()

    @property
    def path(self) -> Path:
        return self.run_dir / f"owner.{self.number}.json"

    def taken_over(self) -> str | None:
        """By whom, if another job owns the folder now."""
        newest = _newest(self.run_dir)
        if newest is None:
            return f"run_dir={self.run_dir}: {self.path.name}, by which this job owned it, was removed"
        if newest.number != self.number or not os.path.samestat(os.fstat(self.file), newest.path.stat()):
            return f"run_dir={self.run_dir} was taken over by another job ({newest.owner})"
        return None

    def release(self) -> None:
        """The folder is free for the next job."""
        if not self.released.is_set():
            self.released.set()
            with suppress(OSError):
                if os.path.samestat(os.fstat(self.file), self.path.stat()):
                    self.path.unlink()
            os.close(self.file)

    def _beat(self) -> None:
        while not self.released.wait(BEAT_SECONDS):
            with suppress(OSError):  # the disk may be away for a while; a save will tell
                os.utime(self.file)
                taken = self.taken_over()
                if taken is not None and not self.released.is_set():
                    self.lost(taken)
                    return


def live_owner(run_dir: Path) -> Owner | None:
    """Who has the folder, as far as can be told at once."""
    try:
        claim = _newest(run_dir)
    except OSError:
        return None
    if claim is None or claim.owner is None or claim.age > STALE_SECONDS or claim.owner.is_gone(Owner.this_job()):
        return None
    return claim.owner


def _acquire(run_dir: Path, job: Owner, tell: Callable[[str], None]) -> tuple[int, int]:
    """-> (number, open file) of the claim. Raises InputError, OSError."""
    while True:
        before = _newest(run_dir)
        takeover = "" if before is None else _require_gone(run_dir, before, job, tell)
        number = 1 if before is None else before.number + 1
        path = run_dir / f"owner.{number}.json"
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666)
        except FileExistsError:  # another job was faster
            continue
        try:
            os.write(file, json.dumps(asdict(job)).encode())
            os.fsync(file)
            found = _newest(run_dir)
            if found is None or found.number == number:
                _remove_older(run_dir, number)
                if takeover:
                    tell(takeover)
                return number, file
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise
        os.close(file)  # the list of files that this was judged by was an old one
        path.unlink(missing_ok=True)


def _require_gone(run_dir: Path, before: _Claim, job: Owner, tell: Callable[[str], None]) -> str:
    """-> what to say about taking over. Raises InputError where the folder's owner lives: where this machine knows
    its process, or else it is seen to beat within STALE_SECONDS."""
    if before.number >= 10**9:
        raise InputError(f"{before.path} is none of this program's: remove it")
    reason, age = "" if before.owner is None else before.owner.is_gone(job), before.age
    began, told = time.monotonic(), False
    while not reason and age <= STALE_SECONDS:
        now = _newest(run_dir)
        if now is None or now.number != before.number:
            return ""  # it has ended, or another has taken over: the caller looks again
        if now.beat != before.beat or _is_seen_here(now, job):
            raise InputError(
                f"run_dir={run_dir} belongs to a job that is running ({now.owner}, heartbeat {now.age:.0f} s ago): "
                "stop that job first, or choose another run_dir"
            )
        if not told and time.monotonic() - began > TELL_SECONDS:
            told = True
            tell(
                f"run_dir={run_dir} has an owner ({before.owner}, last heartbeat {age:.0f} s ago): waiting for another "
                f"{STALE_SECONDS - age:.0f} s, to see whether it lives"
            )
        age = before.age + time.monotonic() - began
        time.sleep(min(0.5, BEAT_SECONDS / 4))
    return (
        f"run_dir={run_dir} is taken over from a job that ended without a word ({before.owner}, last heartbeat "
        f"{age:.0f} s ago{': ' if reason else ''}{reason})"
    )


def _is_seen_here(claim: _Claim, job: Owner) -> bool:
    """Its process runs on this machine and has not missed two heartbeats: there is no need to wait for the next."""
    owner = claim.owner
    return owner is not None and owner.machine == job.machine != "" and claim.age <= 2 * BEAT_SECONDS


def _newest(run_dir: Path) -> _Claim | None:
    """The claim of the highest number. Raises OSError."""
    try:
        names = os.listdir(run_dir)
    except FileNotFoundError:
        return None
    numbers = sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)
    for number in numbers:
        path = run_dir / f"owner.{number}.json"
        with suppress(FileNotFoundError):  # released meanwhile
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                content, beat = os.read(file, 1 << 16), os.fstat(file).st_mtime
            finally:
                os.close(file)
            return _Claim(number, path, _parse(content), beat, max(0.0, _clock(run_dir) - beat))
    return None


def _clock(run_dir: Path) -> float:
    """Now, by the clock of the folder's file system: hosts' clocks differ."""
    path = run_dir / f".clock.{uuid.uuid4().hex}"
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError:  # a full disk, or one that is read-only
        return time.time()
    try:
        path.unlink(missing_ok=True)  # at once: a process that is killed leaves nothing
        return os.fstat(file).st_mtime
    finally:
        os.close(file)


def _parse(content: bytes) -> Owner | None:
    try:
        values = json.loads(content)
        texts = {key: str(values[key])[:200] for key in Owner.__dataclass_fields__ if key != "pid"}
        return Owner(**texts, pid=int(values["pid"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _remove_older(run_dir: Path, number: int) -> None:
    for name in os.listdir(run_dir):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < number:
            (run_dir / name).unlink(missing_ok=True)


def _machine() -> str:
    """ "" where the kernel does not say: then only heartbeats count."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process of this machine began, in clock ticks since boot; "" where there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]

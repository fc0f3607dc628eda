"""Notices ranks that died or hang, names them, and ends the run where waiting is in vain.

Each rank's thread keeps a small file, run_dir/ranks/rank_00000.json: where the rank is, and that it lives. Files
outlive any rank, rank 0 and the store that it holds included, and tell of a rank that cannot speak for itself any more.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, TypeVar

from data_pipeline.common.errors import EXIT_FAILED, EXIT_REQUEUE, Failure, InputError
from pretraining.parallel.host import broadcast_text
from pretraining.parallel.lost import lost_peer
from pretraining.parallel.world import World
from pretraining.run.beats import (
    Beat,
    host,
    is_gone,
    is_in_collective,
    lost_fault,
    lost_text,
    place,
    read_beat,
    read_values,
    silent_text,
    stack_text,
    write_values,
)
from pretraining.run.last_word import heard_code, tell_code
from pretraining.run.ledger import Ledger
from pretraining.run.ownership import LostOwnership
from pretraining.run.phases import Phases
from pretraining.run.signals import Stopped
from pretraining.run.terminal import warn
from pretraining.run.verdict import Verdict

T = TypeVar("T")
FOLDER = "ranks"
STALLED_SECONDS = 10.0  # in one phase, before a rank looks whether others are gone
SLOW_PHASES = {"start", "save"}  # compile, load, a disk that is slow: these may take this many times as long
PATIENCE = 4
SILENT_BEATS = 8  # a rank that has not beaten for so long gives no sign of life
FRAMES = 12  # of a stack, the innermost
SUSPENDED_SECONDS = 5.0  # a thread that waits so much too long was stopped, with its process


class Watchdog:
    """To be used as `with Watchdog(...)`, by all ranks. notice_seconds: without progress until it is told where the
    ranks are; timeout_seconds: until the run is ended, with exit code 75. release: called before it is. is_taken:
    whether another job has the folder, as far as this rank knows."""

    def __init__(
        self,
        run_dir: Path,
        world: World,
        notice_seconds: float,
        timeout_seconds: float,
        release: Callable[[], None] = lambda: None,
        is_taken: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run_dir, self.world, self.phases = run_dir, world, Phases()
        self.notice_seconds, self.timeout_seconds = notice_seconds, timeout_seconds
        self.release, self.is_taken = release, is_taken
        self.start_step = 0  # of the checkpoint that this start goes on from
        self.interval = max(1.0, world.size / 100)  # of beats: a file system serves so many ranks a second
        self.first_step: int | None = None
        self.ended: str | None = None
        self.lost, self.number, self.noticed = False, 0, -1
        self.stack: list[str] = []
        self.quit, self.ending, self.writing = threading.Event(), threading.Lock(), threading.Lock()
        self.main = threading.get_ident()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._keep_beating, self._watch)]

    def __enter__(self) -> Watchdog:
        self.folder = self.run_dir / FOLDER
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a link: nothing is written through one")
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            if self.world.is_main:  # that of another start would look like another job's
                self._path(0).unlink(missing_ok=True)
        self.job = broadcast_text(self.world, secrets.token_hex(8))
        self._beat()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is not None and self.world.size > 1 and lost_peer(error) is not None:
            self._end_by_loss(error)
        self.quit.set()
        for thread in self.threads:
            thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.ended = "done" if error is None else f"{type(error).__name__}: {_first_line(error)}"
        self._beat()
        if error is not None and not isinstance(error, Stopped | KeyboardInterrupt | LostOwnership):
            raise_if_again(self, error)

    # The threads

    def _keep_beating(self) -> None:
        while not self._wait():
            self._beat()
            # a thread of C: it tells where this process is also where Python's threads do not run any more
            if sys.__stderr__ is not None:
                with suppress(ValueError, OSError):  # it is closed, or no file
                    faulthandler.dump_traceback_later(max(self.notice_seconds, 10.0), file=sys.__stderr__)

    def _wait(self) -> bool:
        """Until the next turn of a thread -> whether it is the last. A process that was stopped meanwhile, by a
        scheduler or Ctrl-Z, did not hang: that time does not count; but the run may have gone on without it."""
        began = time.monotonic()
        is_over = self.quit.wait(self.interval)
        if time.monotonic() - began > self.interval + SUSPENDED_SECONDS:
            self.phases.since = time.monotonic()
            self._end_if_taken()
        return is_over

    def _end_if_taken(self) -> None:
        """At once, and without a word in the folder, where it is another job's by now."""
        first = read_beat(self._path(0))  # of whatever start: rank 0 alone knows of the owner
        if self.is_taken() or (first is not None and first.job != self.job):
            warn(f"rank {self.world.rank}: another job has gone on in {self.run_dir} meanwhile: this one ends")
            os._exit(EXIT_FAILED)

    def _watch(self) -> None:
        while not self._wait():
            waited = time.monotonic() - self.phases.since
            if waited > min(STALLED_SECONDS, self.notice_seconds):
                self._look_for_the_dead()
            if waited > self.notice_seconds and self.noticed != self.phases.entered:
                self._notice()
            if waited > self._limit():
                self.end(f"no progress for {waited:.0f} s: {self.describe(self._living_beats())}", "hang")

    def _limit(self) -> float:
        first = self.first_step is None or self.phases.step <= self.first_step
        slow = self.phases.phase in SLOW_PHASES or (first and self.phases.phase != "data")
        return self.timeout_seconds * (PATIENCE if slow else 1)

    def _beat(self) -> None:
        phases, self.number = self.phases, self.number + 1
        if self.first_step is None and phases.step:
            self.first_step = phases.step
        beat = Beat(
            self.job,
            self.world.rank,
            self.world.size,
            host(),
            os.getpid(),
            self.number,
            phases.step,
            phases.phase,
            phases.entered,
            time.monotonic() - phases.since,
            self.stack,
            self.ended,
            self.lost,
        )
        with self.writing, suppress(OSError):  # a full disk hides that the rank lives, nothing else
            write_values(self._path(self.world.rank), asdict(beat))

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.json"

    def _read(self, rank: int) -> Beat | None:
        """None where the rank has written none in this start."""
        beat = read_beat(self._path(rank))
        return beat if beat is not None and beat.job == self.job else None

    def _look_for_the_dead(self) -> None:
        """Of the neighbors, and what others saw of theirs: no rank reads the files of all."""
        for rank in {(self.world.rank + 1) % self.world.size, (self.world.rank - 1) % self.world.size}:
            beat = self._read(rank) if rank != self.world.rank else None
            if beat is not None and beat.ended is None and is_gone(beat):
                self._tell_lost(beat)
        with suppress(OSError, ValueError, RecursionError):
            told = read_values(self.folder / "lost.json")
            if told.get("job") == self.job and time.monotonic() - self.phases.since > 2 * STALLED_SECONDS:
                # the main thread, had it seen the loss, would have ended by now: it waits for a GPU, say
                self.end(str(told.get("reason")), str(told.get("fault")))

    def _tell_lost(self, beat: Beat) -> None:
        with suppress(OSError):
            text = lost_text([beat], self.phases.step)
            write_values(
                self.folder / "lost.json",
                {"job": self.job, "reason": text, "fault": lost_fault([beat])},
                str(self.world.rank),
            )

    def _notice(self) -> None:
        """Tells once for each phase that lasts too long: each rank its own stack, one of them where all are."""
        self.noticed = self.phases.entered
        self.stack = self._own_stack()
        if self._is_speaker():
            time.sleep(3 * self.interval)  # until the others have told their stacks
            if self.noticed == self.phases.entered:
                waited = time.monotonic() - self.phases.since
                text = self.describe(self._living_beats())
                print(f"warning: no progress for {waited:.0f} s: {text}", file=sys.stderr, flush=True)

    def _own_stack(self) -> list[str]:
        frame = sys._current_frames().get(self.main)
        found = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
        return [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in found]

    def _is_speaker(self) -> bool:
        """Rank 0 speaks; where it does not beat, the next one that does."""
        return not any(self._is_beating(rank) for rank in range(self.world.rank))

    def _is_beating(self, rank: int) -> bool:
        before = self._read(rank)
        if before is not None and before.ended is not None and before.lost:
            return True  # it has told why
        if before is None or before.ended is not None or is_gone(before):
            return False
        deadline = time.monotonic() + SILENT_BEATS * self.interval
        while time.monotonic() < deadline:
            time.sleep(self.interval / 4)
            after = self._read(rank)
            if after is not None and after.number != before.number:
                return True
        return False

    def _living_beats(self) -> list[tuple[Beat, bool]]:
        """Every rank's last word, and whether it still speaks."""
        before = [self._read(rank) for rank in range(self.world.size)]
        time.sleep(SILENT_BEATS * self.interval)
        after = [self._read(rank) for rank in range(self.world.size)]
        return [
            (now, rank == self.world.rank or then is None or now.number != then.number)
            for rank, (then, now) in enumerate(zip(before, after, strict=True))
            if now is not None
        ]

    def describe(self, beats: Sequence[tuple[Beat, bool]]) -> str:
        """Which ranks the others wait for, where they are, and their stacks."""
        if silent := [beat for beat, alive in beats if not alive and beat.ended is None]:
            gone = [beat for beat in silent if is_gone(beat)]
            return lost_text(gone, self.phases.step) if gone else "; ".join(silent_text(beat) for beat in silent)
        least = min(beat.entered for beat, _ in beats)
        behind = [beat for beat, _ in beats if beat.entered == least]
        # in the same phase some may wait in a collective for those that never come to it
        behind = [beat for beat in behind if not is_in_collective(beat)] or behind
        if len(behind) == len(beats) > 1:
            return f"all ranks are in {behind[0].phase} of step {behind[0].step}; {stack_text(behind[0])}"
        return "; ".join(f"{place(beat)}; {stack_text(beat)}" for beat in behind[:4])

    # Ends

    def _end_by_loss(self, error: BaseException) -> NoReturn:
        """Names the ranks that died, or that failed by themselves, which no restart mends; those that lost them do not
        count."""
        self._end_if_taken()
        self.lost = True
        self._beat()
        self._end_by_found([beat for rank in range(self.world.size) if (beat := self._read(rank)) is not None])
        beats = self._living_beats()
        self._end_by_found([beat for beat, _ in beats])
        if gone := [beat for beat, alive in beats if beat.ended is None and not beat.lost and not alive]:
            self.end("; ".join(silent_text(beat) for beat in gone), "hang")
        if told := [beat.ended for beat, _ in beats if beat.ended is not None and beat.lost]:
            self.end(told[0], "hang")  # its watchdog has ended it
        late = [(beat, alive) for beat, alive in beats if not beat.lost and beat.ended is None]
        self.end(self.describe(late) if late else f"a connection failed: {_first_line(error)}", "hang")

    def _end_by_found(self, beats: Sequence[Beat]) -> None:
        """Ends where the files alone tell who is at fault."""
        if dead := [beat for beat in beats if beat.ended is None and is_gone(beat)]:
            self.end(lost_text(dead, self.phases.step), lost_fault(dead))
        if failed := [beat for beat in beats if beat.ended not in (None, "done") and not beat.lost]:
            text = (f"rank {b.rank} failed in {b.phase} of step {b.step}: {b.ended}" for b in failed)
            self.end("; ".join(text), "failed", EXIT_FAILED)

    def end(self, reason: str, fault: str, code: int = EXIT_REQUEUE) -> NoReturn:
        """Ends this process, with 1 where the same fault ended the start before: with the code of the rank that speaks.
        Nothing is wound up: other ranks may wait in a collective, and so may a thread that saves."""
        with self.ending:  # the main thread and the watchdog's may both come here
            self.lost = True
            speaks = self._is_speaker()
            code = self._tell_end(reason, fault, code) if speaks else heard_code(self.folder, self.job, code)
            self.ended = reason
            self._beat()
            within(5.0, self.release, None)
            for child in multiprocessing.active_children():
                child.kill()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _tell_end(self, reason: str, fault: str, code: int) -> int:
        if within(5.0, lambda: self.is_again(fault, reason), False):
            batch = within(5.0, self.phases.describe_batch, "")
            code, text = EXIT_FAILED, f"{reason}. {_again(self.phases.step, self.start_step, batch)}"
        else:
            text = f"{reason}. The same command goes on from the last checkpoint" if code == EXIT_REQUEUE else reason
        Verdict(0, self.run_dir, begun=True).write(code, text, fault=code == EXIT_REQUEUE)
        tell_code(self.folder, self.job, code)
        print(f"error: {text}", file=sys.stderr, flush=True)
        return code

    def is_again(self, fault: str, reason: str) -> bool:
        """Records the fault that ends this start -> whether it ended the start before as well."""
        step = self.phases.step  # 0 before training: a node that fails there is none of the run's doing
        return step > 0 and Ledger(self.run_dir).fault(self.job, fault, step, self.start_step, reason)


def raise_if_again(watchdog: Watchdog, error: BaseException) -> None:
    """Records a fault of training; raises a Failure that says so where it is the one that ended the start before."""
    if isinstance(error, InputError) or not watchdog.world.is_main:
        return
    if watchdog.is_again(type(error).__name__, _first_line(error)):
        batch = within(5.0, watchdog.phases.describe_batch, "")
        if not isinstance(error, Failure):
            traceback.print_exception(error)  # of a Failure the message alone is shown
        raise Failure(f"{error}. {_again(watchdog.phases.step, watchdog.start_step, batch)}") from error


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """The result of `work`, or `otherwise` where it takes longer: what hangs may be the disk that it reads."""
    found = [otherwise]
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[-1]


def _again(step: int, start_step: int, batch: str) -> str:
    told = f" Its batch: {batch}." if batch else ""
    return (
        f"The start before ended at step {step} by the same fault, this one went on from step {start_step}: a restart "
        f"will not mend it.{told}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]

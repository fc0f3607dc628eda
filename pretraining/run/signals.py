"""What ends a run from outside: signals, a second Ctrl-C, a launcher that died. Nothing heavy is imported here: the
handlers are installed before everything else."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

from data_pipeline.common.errors import EXIT_REQUEUE

# HUP: the terminal or the connection is gone; XCPU: the soft limit of processor time, which batch systems set
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
EXIT_INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # set by torchrun and by deepspeed's launcher, which are the parents
POLL_SECONDS = 1.0
GRACE_SECONDS = 300.0  # until a config says another: train.timeout_seconds


class Stopped(Exception):
    """All ranks agreed to stop; the checkpoint that its message names is saved. Exit code 75: please requeue."""


class StopRequest:
    """Set by a signal. Once a step has been trained, the trainer stops all ranks together after the running step;
    before, nothing is to be saved, and the first signal ends the process at once.

    Python runs a handler between two instructions of the main thread: never while that waits for a peer or imports a
    module. So a thread of its own reads the signals, which the interpreter's handler in C writes to a socket, and ends
    a process whose main thread has not answered after `grace_seconds`.

    reason: what asked for the stop. announces: one rank's message is enough. trained: there is something to save.
    answered: the main thread is saving, which has its own timeouts. on_end: called with exit code and reason before the
    thread ends the process, within a few seconds.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.announces = True
        self.trained = self.answered = False
        self.grace_seconds = GRACE_SECONDS
        self.on_end: Callable[[int, str], object] = lambda code, reason: None
        self._parent: int | None = None
        self._asked: float | None = None
        self._interrupts = self._handled_interrupts = 0  # by the thread, by the main thread
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._before: dict[int, object] = {}

    def install(self, environment: Mapping[str, str] = os.environ) -> StopRequest:
        """Handles the signals from here on. To be called in the main thread, before anything slow is imported."""
        if any(name in environment for name in LAUNCHERS):
            self._parent = os.getppid()
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        # a forked worker must not wake its parent's thread
        os.register_at_fork(after_in_child=_forget_wakeup_fd)
        for signum in SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup means it
                self._before[signum] = signal.signal(signum, self._handle)
        threading.Thread(target=self._watch, args=(self._ends[0],), daemon=True, name="signals").start()
        return self

    def remove(self) -> None:
        """Puts back what handled the signals before."""
        if self._ends is None:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        self._ends[1].close()  # which ends the thread
        self._ends = None

    def ask(self, reason: str) -> None:
        """Asks for a stop as a signal does, from any thread."""
        self.reason = self.reason or reason
        self._asked = self._asked or time.monotonic()
        if self._ends is not None:
            with suppress(OSError):
                self._ends[1].send(b"\0")  # no signal's number: the thread wakes and looks at the time

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Counted here: the thread may have seen this very signal, and set the reason, before this handler runs.
        self._handled_interrupts += signum == signal.SIGINT
        if self._handled_interrupts > 1:  # a second Ctrl-C means it
            raise KeyboardInterrupt
        self.reason = self.reason or f"stopped by {signal.Signals(signum).name}"
        if signum == signal.SIGINT and self.announces and self.trained:
            _say("stopping after this step and saving a checkpoint; Ctrl-C again ends at once")

    def _watch(self, socket_end: socket.socket) -> None:
        while True:
            busy = self._parent is not None or self._asked is not None
            ready, _, _ = select.select([socket_end], [], [], POLL_SECONDS if busy else None)
            if ready:
                numbers = socket_end.recv(4096)
                if not numbers:
                    socket_end.close()
                    return
                for number in numbers:
                    self._arrived(number)
            if self._parent is not None and os.getppid() != self._parent:
                self._parent = None
                self._end_or_ask("the launcher died")
            if self._asked is not None and not self.answered:
                self._check_deadline(time.monotonic() - self._asked)

    def _arrived(self, signum: int) -> None:
        if signum not in SIGNALS:
            return
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            time.sleep(POLL_SECONDS)  # the main thread ends by KeyboardInterrupt, unless it waits in a collective
            _say("ended at once: the run goes on from its last checkpoint with the same command")
            os._exit(EXIT_INTERRUPTED)
        self._end_or_ask(f"stopped by {signal.Signals(signum).name}")

    def _end_or_ask(self, reason: str) -> None:
        if not self.trained:
            self._end(f"{reason} before a step was trained: there was nothing to save")
        self.ask(reason)

    def _check_deadline(self, waited: float) -> None:
        if waited > self.grace_seconds:
            where = _place_of_main_thread()
            self._end(
                f"{self.reason}, but the main thread gave no answer within {self.grace_seconds:g} s ({where}): no "
                "checkpoint was saved"
            )

    def _end(self, reason: str) -> None:
        if self.announces:
            _say(reason)
        # what on_end writes lies on a disk that may hang as well
        told = threading.Thread(target=self.on_end, args=(EXIT_REQUEUE, reason), daemon=True)
        told.start()
        told.join(timeout=5.0)
        os._exit(EXIT_REQUEUE)


def _forget_wakeup_fd() -> None:
    with suppress(ValueError):  # forked in another thread than the main one: it handles no signals
        signal.set_wakeup_fd(-1)


def _say(text: str) -> None:
    """os.write: print may be what was interrupted."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _place_of_main_thread() -> str:
    """The innermost line of this program that the main thread is in, for people who look for what hangs."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "it has ended"
    stack = traceback.extract_stack(frame)
    own = [f for f in stack if "pretraining" in f.filename or "data_pipeline" in f.filename] or list(stack)
    return f"in {own[-1].name}, {os.path.basename(own[-1].filename)}:{own[-1].lineno}"

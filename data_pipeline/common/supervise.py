"""Runs a command whose files survive a kill at any moment, so that Ctrl-C, SIGTERM and a batch system's signals end it
at once, whatever it does.

A handler within the command cannot promise that: Python runs it only between two bytecodes (a line of 200 MB is one
call of json, training a tokenizer one call of C++), and an exception in the middle of a process pool's bookkeeping
makes the pool wait forever. So the command is a child process that ignores these signals; it is killed with its
workers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from data_pipeline.common.errors import EXIT_REQUEUE

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_WAITED_FOR = (*_STOPS, signal.SIGCHLD, signal.SIGTSTP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervised(function: Callable[[], int], hint: str) -> int:
    """-> the exit code of `function`, EXIT_REQUEUE where a signal stopped it. hint: what the message ends with.

    Call it before any thread is started: it forks.
    """
    sys.stdout.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)  # kept until they are waited for: none is missed
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _begin_child(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return function()
    _lead_own_group(child)
    return _wait(child, hint)


def _begin_child(parent: int) -> None:
    _lead_own_group(0)
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)  # workers inherit it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before
            os._exit(EXIT_REQUEUE)


def _lead_own_group(child: int) -> None:
    """So that the child can be killed with its workers. Both sides do it: nobody knows who runs first."""
    try:
        os.setpgid(child, child)
    except (PermissionError, ProcessLookupError):
        assert child != 0  # the child has done it, and may have ended


def _wait(child: int, hint: str) -> int:
    while True:
        number = signal.sigwait(_WAITED_FOR)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _exit_code(os.waitstatus_to_exitcode(status), hint)
        elif number == signal.SIGTSTP:  # Ctrl-Z reaches this process alone
            os.killpg(child, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.killpg(child, signal.SIGCONT)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            print(f"\nstopped; {hint}", file=sys.stderr)
            return EXIT_REQUEUE


def _exit_code(code: int, hint: str) -> int:
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; {hint}", file=sys.stderr)
    return EXIT_REQUEUE

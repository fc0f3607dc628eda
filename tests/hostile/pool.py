"""Runs cases in processes of their own, several at once, each with a deadline and a limit of memory."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT
from tests.hostile.case import EXPORT, PATIENCE, PREPARE, SHOW, TRAIN, Case, Place, Result, fingerprint, make_outside

SPARE_BYTES = 6 << 30  # of address space beyond what this process has: an attack must not take the machine down
PRELOADED = (TRAIN, PREPARE, EXPORT, SHOW, "pretraining.trainer", "torch._dynamo", "sentencepiece", "tokenizers")


@dataclass
class Running:
    case: Case
    place: Place
    pid: int
    started: float
    before: dict[str, str]


def run_in_child(function: object, *arguments: object) -> int:
    """A function in a forked process -> its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*arguments)  # type: ignore[operator]
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_cases(cases: Sequence[Case], folder: Path, base: Path, at_once: int = 2) -> Iterator[Result]:
    """Results as they come. folder: where they are laid out; what a kept promise leaves there is removed."""
    for module in PRELOADED:
        importlib.import_module(module)
    left, running = list(enumerate(cases)), list[Running]()
    while left or running:
        while left and len(running) < at_once:
            number, case = left.pop(0)
            running.append(_start(case, Place(folder / f"{number:04d}", base)))
        for job in list(running):
            result = _look(job)
            if result is not None:
                running.remove(job)
                yield result
        time.sleep(0.01)


def _start(case: Case, place: Place) -> Running:
    make_outside(place.outside)
    before = fingerprint(place.outside)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_command(case, place)
    return Running(case, place, pid, time.monotonic(), before)


def _be_the_command(case: Case, place: Place) -> None:
    """Does not return."""
    code = 99
    try:
        os.setsid()
        arguments = case.arrange(place)
        out = os.open(place.here / ".output", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(place.here)
        os.environ.update(case.environment)
        if case.real:
            line = [sys.executable, "-m", case.module, *arguments]
            os.execve(sys.executable, line, {**os.environ, "PYTHONPATH": str(ROOT)})
        _limit_memory()
        sys.argv = [case.module, *arguments]
        code = importlib.import_module(case.module).main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _look(job: Running) -> Result | None:
    """None while it runs and may."""
    late = time.monotonic() - job.started > job.case.seconds * PATIENCE
    if late:
        os.killpg(job.pid, signal.SIGKILL)
    pid, status, usage = os.wait4(job.pid, 0 if late else os.WNOHANG)
    if pid == 0:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)  # workers that outlived it
    code = None if late else os.waitstatus_to_exitcode(status)
    return _judged(job, code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _judged(job: Running, code: int | None, seconds: float, megabytes: float) -> Result:
    case, place = job.case, job.place
    file = place.here / ".output"
    output = file.read_text(errors="replace") if file.exists() else "it could not be laid out"
    said = case.said.replace("{here}", str(place.here))
    faults = []
    if code is None:
        faults.append(f"no end within {case.seconds * PATIENCE:g} s")
    elif seconds > case.seconds:
        faults.append(f"{seconds:.0f} s, at most {case.seconds:g} were promised")
    elif code not in case.codes:
        faults.append(f"exit code {code}, promised {' or '.join(map(str, case.codes))}")
    if "Traceback (most recent call last)" in output:
        faults.append("a traceback")
    if code == 2 and said not in output:
        faults.append(f"does not name {said!r}")
    if megabytes > case.megabytes:
        faults.append(f"{megabytes:.0f} MB, at most {case.megabytes} were promised")
    if fingerprint(place.outside) != job.before:
        faults.append("changed what lies outside")
    if len(output) > 100_000:
        faults.append(f"{len(output)} characters of output")
    if not faults:
        shutil.rmtree(place.here, ignore_errors=True)
    return Result(case, code, seconds, megabytes, tuple(faults), output)

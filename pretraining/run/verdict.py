"""run_dir/verdict.json: how a run ended. Nothing heavy is imported here: a signal may come while modules are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, InputError
from data_pipeline.common.plain_files import create_new, open_plain, temporary_name
from pretraining.run.ownership import live_owner

VERDICT = "verdict.json"
LARGEST = 1 << 20  # bytes; a longer one was not written here


def named_run_dir(overrides: Sequence[str]) -> Path | None:
    """The run_dir that these overrides name, before anything is known to be right."""
    keys = [o.lstrip("+") for o in overrides]  # +run_dir= and ++run_dir= are the same to Hydra
    names = [o.removeprefix("run_dir=").strip("'\"") for o in keys if o.startswith("run_dir=")]
    if not names or names[-1] in ("", "null") or "${" in names[-1]:
        return None
    return Path(os.path.expanduser(names[-1]))


def read_exit_code(run_dir: Path) -> int | None:
    """How the run ended last; None where nothing that can be read says so."""
    try:
        with os.fdopen(open_plain(run_dir / VERDICT, links=False), "rb") as file:
            values = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    code = values.get("exit_code") if isinstance(values, dict) else None
    return code if type(code) is int else None  # true is an int as well


@dataclass
class Verdict:
    """Tells the exit code, since launchers hide codes. Rank 0 writes it, also where its `with` block ends by an
    exception. run_dir: None as long as it is not known; then nothing is written. owned: the folder is this job's."""

    rank: int
    run_dir: Path | None
    begun: bool = False
    owned: bool = False

    def begin(self) -> None:
        """Training begins: what the run before said of the folder is no longer true. Raises InputError."""
        if self.rank == 0 and self.run_dir is not None:
            path = self.run_dir / VERDICT
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # a folder of that name
                raise InputError(f"{path} cannot be replaced: {error.strerror or error}") from error
        self.begun = True

    def write(self, code: int, reason: str, fault: bool = False) -> int:
        """-> code. A command that fails before training begins changes nothing of a run that is done, nor of one that
        another job is training.

        fault: 75 that no signal asked for: a job script restarts such a run only as long as it makes progress."""
        if self.rank == 0 and self.run_dir is not None and not self._is_anothers(self.run_dir):
            _write(self.run_dir, code, reason, fault)
        return code

    def write_if_none(self, code: int, reason: str, fault: bool = False) -> int:
        """The same on any rank, where rank 0 is not there to do it -> code."""
        if self.begun and self.run_dir is not None and read_exit_code(self.run_dir) is None:
            _write(self.run_dir, code, reason, fault)
        return code

    def _is_anothers(self, run_dir: Path) -> bool:
        if self.begun:
            return False
        return read_exit_code(run_dir) == EXIT_DONE or (not self.owned and live_owner(run_dir) is not None)

    def __enter__(self) -> Verdict:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> Literal[False]:
        if isinstance(error, InputError):
            self.write(EXIT_INPUT_ERROR, str(error))
        elif error is not None:
            self.write(EXIT_FAILED, str(error) or repr(error))
        return False


def _write(run_dir: Path, code: int, reason: str, fault: bool) -> None:
    """Atomically, and through no link."""
    values = {"exit_code": code, "reason": reason, **({"fault": True} if fault else {})}
    temporary = temporary_name(run_dir / VERDICT)
    with suppress(OSError):  # no folder can be made of that name: the error's message says so
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(create_new(temporary), "w") as file:
                json.dump(values, file)
            os.replace(temporary, run_dir / VERDICT)
        except OSError:  # a full disk: each start would leave one
            os.unlink(temporary)
            raise

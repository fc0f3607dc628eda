"""run_dir/verdict.json: how a run ended."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, InputError
from data_pipeline.common.files import write_atomically
from data_pipeline.common.json_files import read_json_if_there
from pretraining.run.run_dir import VERDICT


@dataclass
class Verdict:
    """Tells the exit code, since launchers hide codes. Rank 0 writes it, also where its `with` block ends by an
    exception. run_dir: None as long as it is not known; then nothing is written."""

    rank: int
    run_dir: Path | None
    begun: bool = False

    def begin(self) -> None:
        """Training begins: what the run before said of the folder is no longer true."""
        self.begun = True
        if self.rank == 0 and self.run_dir is not None:
            (self.run_dir / VERDICT).unlink(missing_ok=True)

    def write(self, code: int, reason: str) -> int:
        """-> code. A command that fails before training begins changes nothing of a run that is done."""
        if not self.begun and self._is_done():
            return code
        if self.rank == 0 and self.run_dir is not None:
            with suppress(OSError):  # no folder can be made of that name: the error's message says so
                self.run_dir.mkdir(parents=True, exist_ok=True)
                write_atomically(self.run_dir / VERDICT, json.dumps({"exit_code": code, "reason": reason}))
        return code

    def _is_done(self) -> bool:
        if self.run_dir is None:
            return False
        try:
            return read_json_if_there(self.run_dir / VERDICT).get("exit_code") == EXIT_DONE
        except InputError:  # a broken file says nothing that could be lost
            return False

    def __enter__(self) -> Verdict:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> Literal[False]:
        if isinstance(error, InputError):
            self.write(EXIT_INPUT_ERROR, str(error))
        elif error is not None:
            self.write(EXIT_FAILED, str(error) or repr(error))
        return False

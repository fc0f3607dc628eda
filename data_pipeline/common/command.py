"""How every command runs: overrides in, an exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable

from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, Failure, InputError


def run_command(function: Callable[[list[str]], int | None], help_text: Callable[[], str]) -> int:
    """Runs `function(overrides)` as a command: `--help`; InputError and Failure as a message and an exit code."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]  # the deepspeed launcher's
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return EXIT_DONE
    try:
        return function(arguments) or EXIT_DONE
    except (InputError, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR if isinstance(error, InputError) else EXIT_FAILED

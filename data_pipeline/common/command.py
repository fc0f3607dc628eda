"""How every command runs: options and overrides in, an exit code out."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Mapping

from data_pipeline.common.compose import NO_SYNONYMS, composed, raise_problems
from data_pipeline.common.errors import EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, Failure, InputError
from data_pipeline.common.options import Options, parse_options
from data_pipeline.common.overrides import shortened

Command = Callable[[list[str]], int | None]  # arguments -> exit code
MESSAGE_CHARACTERS = 20_000  # ten thousand inputs may be missing
EXIT_CLOSED_PIPE = 141  # as a shell reports a process that SIGPIPE ended


def run_command(
    function: Command,
    about: str,
    config_name: str,
    schema: type,
    synonyms: Mapping[str, str] = NO_SYNONYMS,
    multirun: Command | None = None,
) -> int:
    """Runs `function(arguments)` as a command -> exit code; InputError and Failure become a message.

    about: what --help begins with. config_name, schema, synonyms: as compose_config takes them. multirun: the same with
    --multirun, where that is offered.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are not UTF-8; stderr escapes them
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(function, multirun, about, config_name, schema, synonyms)
        if sys.stdout is not None:  # closed, as by `>&-`
            sys.stdout.flush()
        return code
    except (InputError, Failure) as error:
        text = shortened(str(error), MESSAGE_CHARACTERS)
        print(f"error:{'' if text.startswith(os.linesep) else ' '}{text}", file=sys.stderr)
        return EXIT_INPUT_ERROR if isinstance(error, InputError) else EXIT_FAILED
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        _drop_output()
        return EXIT_CLOSED_PIPE
    except OSError as error:
        fault = stdout_fault(error)
        if fault is None:
            raise
        _drop_output()
        print(f"error: standard output cannot be written to: {fault.strerror or fault}", file=sys.stderr)
        return EXIT_FAILED


def _run(
    function: Command,
    multirun: Command | None,
    about: str,
    config_name: str,
    schema: type,
    synonyms: Mapping[str, str],
) -> int:
    from data_pipeline.common.completion import completions, run_completion

    options = parse_options(sys.argv[1:])
    if options.completion is not None:
        run_completion(options.completion, lambda line: completions(config_name, schema, line))
    elif options.show is not None:
        print(_shown(options, about, config_name, schema, synonyms))
    elif options.multirun and multirun is None:
        raise InputError("--multirun is not supported by this command")
    else:
        return ((multirun if options.multirun else None) or function)(options.arguments) or EXIT_DONE
    return EXIT_DONE


def _shown(options: Options, about: str, config_name: str, schema: type, synonyms: Mapping[str, str]) -> str:
    from data_pipeline.common import help

    if options.show == "version":
        return help.version_text()
    found = composed(config_name, options.arguments, schema, synonyms)
    raise_problems(found.problems)
    if options.show == "cfg":
        return help.config_text(found)
    return help.help_text(about, found) if options.show == "help" else help.info_text(found)


def stdout_fault(error: OSError) -> OSError | None:
    """Why standard output cannot be written to, as on a full disk, where that may be what this error came from."""
    if error.filename is not None or sys.stdout is None:
        return None
    try:
        print(flush=True)  # a line, since nothing need be buffered that a flush would try to write again
    except OSError as fault:
        return fault
    return None


def _drop_output() -> None:
    """What is still buffered would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind `| head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False

"""Errors that every command reports the same way, and the exit codes that scripts rely on."""

EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, EXIT_REQUEUE = 0, 1, 2, 75


class InputError(ValueError):
    """A fault in the configuration or the input: told to the user, exit code 2."""


class Failure(Exception):
    """What ends a run and no restart mends, divergence say: told to the user, exit code 1."""

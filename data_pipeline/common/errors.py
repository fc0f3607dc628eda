"""Errors that every command reports the same way, and the exit codes that scripts rely on."""

EXIT_DONE, EXIT_FAILED, EXIT_INPUT_ERROR, EXIT_REQUEUE = 0, 1, 2, 75


class InputError(ValueError):
    """Something wrong with the configuration or the input. Reported to the user as a message, exit code 2."""


class Failure(Exception):
    """A failure that a restart cannot fix, such as divergence. Reported to the user as a message, exit code 1."""

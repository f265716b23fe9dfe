"""Exit codes: what a command's end tells the one who started it."""

from enum import IntEnum

from outbox.errors import ConfigurationError, Fenced


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    FAILED = 1
    CONFIGURATION = 2
    FENCED = 3


def exit_code(error: BaseException) -> Exit:
    """Return the exit code for what ended a command."""
    if isinstance(error, ConfigurationError):
        return Exit.CONFIGURATION
    if isinstance(error, Fenced):
        return Exit.FENCED
    return Exit.FAILED

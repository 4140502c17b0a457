"""Errors that end a command with one line instead of a traceback."""

from training.record.secrets import masked

AUTOFLUSH = "(raised as a result of Query-invoked autoflush"


class InputError(ValueError):
    """The user's input is wrong; the message names the place, the rule and what to do.

    Passwords and tokens are masked in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class DivergedError(RuntimeError):
    """A loss stopped being finite."""


def first_line(error: Exception) -> str:
    """The first line of a library's error, without SQLAlchemy's preface."""
    lines = [line for line in str(error).splitlines() if AUTOFLUSH not in line]
    return (lines or [type(error).__name__])[0]

"""What ends a command with one line instead of a traceback."""

from training.record.secrets import masked

AUTOFLUSH = "(raised as a result of Query-invoked autoflush"


class InputError(ValueError):
    """What the user gave is wrong; the message names the place, the rule and what to do.

    No password or token of a URL is in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class DivergedError(RuntimeError):
    """A loss stopped being finite."""


def first_line(error: Exception) -> str:
    """What a library's error says, in one line: the first, but for SQLAlchemy's preface."""
    lines = [line for line in str(error).splitlines() if AUTOFLUSH not in line]
    return (lines or [type(error).__name__])[0]

"""Waiting for what is away for a while: a database, a server, space on a disk."""

import time
from collections.abc import Callable
from typing import TypeVar

from training.engine.checkpoint import NO_SPACE
from training.record.errors import InputError, first_line

RETRY_SECONDS = 2.0

T = TypeVar("T")


class Patience:
    """Repeats what fails for want of something that is away, and says what it waits for.

    After `minutes` of failures in a row it raises InputError.
    """

    def __init__(self, minutes: float, tell: Callable[[str], None]) -> None:
        self._minutes, self._tell = minutes, tell
        self.answering_since = time.monotonic()
        """By the monotonic clock; since the first failure, not before the last one."""

    def __call__(
        self, what: str, attempt: Callable[[], T], is_away: Callable[[Exception], bool]
    ) -> T:
        failing_since = None
        while True:
            try:
                result = attempt()
            except Exception as error:
                if not is_away(error):
                    raise
                now = time.monotonic()
                failing_since = failing_since or now
                if now - failing_since > self._minutes * 60:
                    raise InputError(
                        f"waited {self._minutes:g} minutes (engine.patience_minutes) for {what}: "
                        f"{first_line(error)}; run the command again to resume"
                    ) from error
                self._tell(f"{what}: {first_line(error)}")
                time.sleep(RETRY_SECONDS)
            else:
                if failing_since is not None:
                    self.answering_since = time.monotonic()
                return result

    def for_space(self, what: str, attempt: Callable[[], T]) -> T:
        """Repeat a write while the disk is full."""
        return self(what, attempt, is_full)


def is_full(error: Exception) -> bool:
    """Whether an error says that a disk is full."""
    return isinstance(error, OSError) and error.errno in NO_SPACE

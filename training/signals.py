"""Interruption: SIGTERM ends a process as Ctrl-C does."""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM; the ending is not interrupted."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Let a process that is ending anyway end in peace."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

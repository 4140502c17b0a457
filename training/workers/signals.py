"""Interruption: SIGTERM and a closed terminal end a process as Ctrl-C does; children follow."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINAL = (signal.SIGINT, signal.SIGHUP)  # what a terminal sends to a command and its children
INTERRUPTED = "interrupted; start it again to go on where it was"
END_SECONDS = 30  # for a worker to close its MLflow run
REPEAT_SECONDS = 0.1


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at the first of these signals; the ending is not interrupted.

    SIGHUP stays ignored where it is, as `nohup` asks.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    def repeat(lost: "sys.UnraisableHookArgs") -> None:
        """Python drops an interrupt that comes while it calls a finaliser."""
        if lost.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(lost)
            return
        _handle(interrupt)
        threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)).start()

    sys.unraisablehook = repeat
    _handle(interrupt)


def ignore_signals() -> None:
    """Let a process that is ending anyway end in peace."""

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Not SIG_IGN: Python reports a signal that is pending while that is set."""

    _handle(ignore)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def terminal_blocked() -> Iterator[None]:
    """Children that start within never see the terminal's signals: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Interrupt this child process when its parent dies; after `END_SECONDS` end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        end()

    threading.Thread(target=watch, daemon=True).start()


def end() -> None:
    """Interrupt this process from one of its threads, and end it if it does not end by itself."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)

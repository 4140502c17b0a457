"""Interruption: SIGTERM and a closed terminal act like Ctrl-C; children end with their parent.

A worker that trains saves a checkpoint first.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TERMINAL = (signal.SIGINT, signal.SIGHUP)  # what a terminal sends to a command and its children
INTERRUPTED = "interrupted; run the command again to resume"
END_SECONDS = 30  # time for a worker to close its MLflow run
SAVE_SECONDS = 20  # time for a worker that trains to reach a checkpoint, part of the above
REPEAT_SECONDS = 0.1


class _Deferral:
    """Whether an interrupt waits for the end of a block, and whether there was one."""

    active = False
    requested = False
    late = False


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt at the first of these signals, and ignore later ones.

    Within `deferred` it is raised at the end of the block, or after `SAVE_SECONDS`. SIGHUP stays
    ignored if it was, as under `nohup`.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if _Deferral.active and not _Deferral.late:
            if not _Deferral.requested:  # Slurm signals every process, and a parent its children
                _Deferral.requested = True
                timer = threading.Timer(SAVE_SECONDS, late)
                timer.daemon = True
                timer.start()
            return
        ignore_signals()
        raise KeyboardInterrupt

    def late() -> None:
        _Deferral.late = True
        os.kill(os.getpid(), signal.SIGTERM)

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        """Repeat an interrupt that Python drops because it arrives in a finaliser."""
        if unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        _handle(interrupt)
        threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), signal.SIGTERM)).start()

    sys.unraisablehook = repeat
    _handle(interrupt)


def ignore_signals() -> None:
    """Ignore further signals in a process that is ending."""

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Used instead of SIG_IGN, for which Python reports pending signals as errors."""

    _handle(ignore)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Let a block end itself when an interrupt is requested, which the value tells."""
    _Deferral.active = True
    try:
        yield is_interrupted
    finally:
        _Deferral.active = False
        if _Deferral.requested:
            ignore_signals()
    if _Deferral.requested:
        raise KeyboardInterrupt


def is_interrupted() -> bool:
    """Whether an interrupt was requested within `deferred`."""
    return _Deferral.requested


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def terminal_blocked() -> Iterator[None]:
    """Block the terminal's signals in children started here; their parent ends them."""
    resource_tracker.ensure_running()  # multiprocessing's, whose start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Interrupt this child process when its parent dies, and end it after `END_SECONDS`."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        end()

    threading.Thread(target=watch, daemon=True).start()


def end() -> None:
    """Interrupt this process from one of its threads, and end it after `END_SECONDS`."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(1)

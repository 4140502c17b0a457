"""A worker of one process on this machine."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from training.record import secrets
from training.workers import worker
from training.workers.messages import Event, Job
from training.workers.signals import end_with_parent

LONGEST = 60  # characters of the temporary folder's path; a socket's name has at most 107


class LocalWorker:
    """A child process, and the pipe of its events.

    Workers share no queue: one that is killed while it writes would block the others. The first
    one of a command waits for the fork server to import the libraries.
    """

    def __init__(self, job: Job, index: int) -> None:
        self._events, self._their_end = multiprocessing.Pipe(duplex=False)
        self.name = f"worker-{index}"
        args = (job, index, self._their_end, dict(os.environ))
        self._process = _context().Process(target=_work, args=args)
        self._starting = threading.Thread(target=self._start, daemon=True)
        self._unwanted = self._lost = False

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return -signal.SIGKILL if self._lost else self._process.exitcode

    def start(self) -> None:
        self._starting.start()

    def _start(self) -> None:
        try:
            self._process.start()
        except (EOFError, OSError):  # the fork server was killed
            self._lost = True
        self._their_end.close()  # so that the pipe ends with the process
        if self._unwanted and self._is_started():
            self._process.terminate()

    def is_alive(self) -> bool:
        return self._starting.is_alive() or self._process.is_alive()

    def terminate(self) -> None:
        self._unwanted = True
        if self._is_started():
            self._process.terminate()

    def kill(self) -> None:
        if self._is_started():
            self._process.kill()

    def join(self, timeout: float) -> None:
        if self._is_started():
            self._process.join(timeout)

    def _is_started(self) -> bool:
        return self._process.pid is not None

    def events(self) -> list[Event]:
        """The events that have arrived."""
        events: list[Event] = []
        with suppress(EOFError, OSError):  # of a process that is gone
            while self._events.poll():
                events.append(self._events.recv())
        return events


def _context() -> Any:
    """How workers are started: forked from the fork server, whose socket lies in the temporary
    folder; each on its own where the folder's path is too long for that."""
    if len(tempfile.gettempdir()) > LONGEST:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.workers.preload"])
    return context


def _work(
    job: Job, index: int, events: "Connection[Any, Any]", environment: dict[str, str]
) -> None:
    os.environ.clear()  # of the fork server, which may be older than the job
    os.environ.update(environment)
    secrets.guard()
    end_with_parent()

    def emit(event: Event) -> None:
        try:
            events.send(event)
        except OSError:
            raise KeyboardInterrupt from None  # nobody is left to work for

    sys.exit(worker.main(job, index, emit))

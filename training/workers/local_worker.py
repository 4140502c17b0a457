"""A worker of one process on this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil

from training.record import secrets
from training.workers import worker
from training.workers.messages import Event, Job
from training.workers.signals import end_with_parent

SERVER_LOST = 255  # what multiprocessing gives as the exit code then


class LocalWorker:
    """A child process, and the pipe of its events.

    Workers share no queue: one that is killed while it writes would block the others. They are
    forked from multiprocessing's fork server, for whose imports the first one waits; where there
    can be none, such as in a temporary folder whose path is too long for its socket, each worker
    imports the libraries itself.
    """

    def __init__(self, job: Job, index: int) -> None:
        self._events, self._their_end = multiprocessing.Pipe(duplex=False)
        self.name = f"worker-{index}"
        self.fault = ""
        """Why it could not be started."""
        self._arguments = (job, index, self._their_end, dict(os.environ))
        self._process: Any = None
        self._handle: psutil.Process | None = None
        self._starting = threading.Thread(target=self._start, daemon=True)
        self._unwanted = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode if self._process else None

    @property
    def is_orphaned(self) -> bool:
        """Whether the fork server was killed, so that nobody knows how this worker ended."""
        return self.exitcode == SERVER_LOST

    def start(self) -> None:
        self._starting.start()

    def _start(self) -> None:
        try:
            try:
                process = self._started("forkserver")
            except OSError:
                process = self._started("spawn")
        except EOFError:
            self.fault = "the process that starts workers was killed"
        except Exception as error:
            self.fault = f"it cannot be started: {type(error).__name__}: {error}"
        self._their_end.close()  # so that the pipe ends with the process
        if not self.fault:
            with suppress(psutil.NoSuchProcess):  # it has ended already
                self._handle = psutil.Process(process.pid)
            self._process = process
            if self._unwanted:
                process.terminate()

    def _started(self, method: str) -> Any:
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["training.workers.preload"])
        process = context.Process(target=_work, args=self._arguments)
        process.start()
        return process

    def is_alive(self) -> bool:
        return self._starting.is_alive() or bool(self._process and self._process.is_alive())

    def terminate(self) -> None:
        self._unwanted = True
        if self._process:
            self._process.terminate()

    def kill(self) -> None:
        if self._handle:  # the process itself, whatever multiprocessing knows of it
            with suppress(psutil.Error):
                self._handle.kill()

    def join(self, timeout: float) -> None:
        if self._process:
            self._process.join(timeout)
        else:
            self._starting.join(timeout)

    def events(self) -> list[Event]:
        """The events that have arrived."""
        events: list[Event] = []
        with suppress(EOFError, OSError):  # of a process that is gone
            while self._events.poll():
                events.append(self._events.recv())
        return events


def _work(
    job: Job, index: int, events: "Connection[Any, Any]", environment: dict[str, str]
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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

"""A worker of one process on this machine."""

import multiprocessing
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from training.record import secrets
from training.workers import worker
from training.workers.messages import Event, Job
from training.workers.signals import end_with_parent

CONTEXT = multiprocessing.get_context("spawn")


class LocalWorker:
    """A child process, and the pipe of its events.

    Workers share no queue: one that is killed while it writes would block the others.
    """

    def __init__(self, job: Job, index: int) -> None:
        self._events, self._their_end = CONTEXT.Pipe(duplex=False)
        self.name = f"worker-{index}"
        self._process = CONTEXT.Process(target=_work, args=(job, index, self._their_end))

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def start(self) -> None:
        self._process.start()
        self._their_end.close()  # so that the pipe ends with the process

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout: float) -> None:
        self._process.join(timeout)

    def events(self) -> list[Event]:
        """The events that have arrived."""
        events: list[Event] = []
        with suppress(EOFError, OSError):  # of a process that is gone
            while self._events.poll():
                events.append(self._events.recv())
        return events


def _work(job: Job, index: int, events: "Connection[Any, Any]") -> None:
    secrets.guard()
    end_with_parent()

    def emit(event: Event) -> None:
        try:
            events.send(event)
        except OSError:
            raise KeyboardInterrupt from None  # nobody is left to work for

    sys.exit(worker.main(job, index, emit))

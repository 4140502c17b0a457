"""A worker's job, and the events that it sends to its parent."""

from dataclasses import dataclass, field
from pathlib import Path

from training.config import Engine
from training.engine.devices import Machines
from training.run import Run


@dataclass(frozen=True)
class Queue:
    """A named queue of runs in a ledger, and the MLflow run that their runs are children of."""

    ledger_url: str = field(repr=False)
    name: str
    experiment_id: str
    parent_run_id: str
    workspace: Path
    engine: Engine
    """The study's current settings; they replace those that runs were enqueued with."""


@dataclass(frozen=True)
class SingleRun:
    """One run, logged to an existing MLflow run."""

    run: Run
    run_id: str
    experiment_id: str


@dataclass(frozen=True)
class Job:
    """All that a worker needs to start."""

    work: Queue | SingleRun
    tracking_uri: str = field(repr=False)
    corpus: Path
    machines: Machines
    token: str = ""
    """The name of the parent that starts the worker."""


@dataclass(frozen=True)
class Starting:
    """What a worker does before it can claim runs; empty when it is ready."""

    doing: str = ""


@dataclass(frozen=True)
class Alive:
    """A check by a worker of several processes that its parent still exists."""


@dataclass(frozen=True)
class Started:
    """A run was claimed."""

    name: str


@dataclass(frozen=True)
class Progress:
    """Work done since the last event."""

    flops: int
    tokens: int


@dataclass(frozen=True)
class Finished:
    """A run has ended; `diverged` says why it has no complete history."""

    name: str
    diverged: str | None = None


@dataclass(frozen=True)
class Waiting:
    """The worker cannot go on before this is over."""

    reason: str


@dataclass(frozen=True)
class Undelivered:
    """Nothing is left to train; the logs of so many of the worker's runs wait for the server."""

    runs: int


@dataclass(frozen=True)
class Note:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class Crashed:
    """A run's training failed, and the worker ends; another attempt may succeed."""

    name: str
    reason: str
    traceback: str


@dataclass(frozen=True)
class Failed:
    """The worker ends with this error, and so does the command."""

    error: Exception


Event = (
    Starting
    | Alive
    | Started
    | Progress
    | Finished
    | Waiting
    | Undelivered
    | Note
    | Crashed
    | Failed
)

"""What a worker is told, and what it tells its parent."""

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
    """As the study says now; runs may wait since it said something else."""


@dataclass(frozen=True)
class SingleRun:
    """One run, trained into an MLflow run that is there already."""

    run: Run
    run_id: str


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    work: Queue | SingleRun
    tracking_uri: str = field(repr=False)
    corpus: Path
    machines: Machines


@dataclass(frozen=True)
class Starting:
    """What a worker does before it can claim runs; nothing any more: it is up."""

    worker: int
    doing: str = ""


@dataclass(frozen=True)
class Alive:
    """A worker of several processes still has its parent."""


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
    """A run ended; `diverged` says why it has no complete history."""

    name: str
    diverged: str | None = None


@dataclass(frozen=True)
class Waiting:
    """Nothing to claim while other workers hold this many runs."""

    runs: int


@dataclass(frozen=True)
class Failed:
    """The worker ends by this error: the user's mistake, or a RuntimeError with the traceback."""

    error: Exception


Event = Starting | Alive | Started | Progress | Finished | Waiting | Failed

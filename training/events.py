"""What a worker is told, and what it tells its parent."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What a worker needs to know beside the ledger's runs."""

    ledger_url: str
    ledger_name: str
    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    corpus: Path
    threads: int


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
    """The worker ends; `message` is one line for a user's mistake, else a traceback."""

    message: str
    users_mistake: bool


Event = Started | Progress | Finished | Waiting | Failed

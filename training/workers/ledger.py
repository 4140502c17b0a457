"""The sweep's ledger: runs are enqueued as Optuna trials, which workers claim atomically.

Workers send heartbeats. The trial of a dead worker is failed and enqueued again. MLflow records
which runs are done; the ledger only distributes the others.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from training.record import secrets, sqlite_store, stores
from training.run import Run, fingerprint

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60  # without a heartbeat before a worker counts as dead
POLL_SECONDS = 1.0
SQLITE = {"connect_args": {"timeout": sqlite_store.LOCK_SECONDS}}
RUN = "run"
FINGERPRINT = "fingerprint"
WITHDRAWN = "withdrawn"  # attribute of the queue: fingerprints of runs that must not be trained


class _Storage(optuna.storages.RDBStorage):
    """Records a trial's first heartbeat when it is claimed.

    Optuna starts the heartbeat a moment after the claim, and a worker that died in between would
    never count as dead.
    """

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


class Ledger:
    """One named queue of runs in a relational store (SQLite; PostgreSQL for several machines)."""

    def __init__(self, url: str, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        secrets.remember(url)
        try:
            storage = _Storage(
                url,
                engine_kwargs=SQLITE if url.startswith("sqlite") else None,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
        except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            raise stores.failure(url, "ledger", error) from error
        if url.startswith("sqlite"):
            _lock_transactions(storage.engine)
        self._url = url
        with self._answering():
            self._study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction="minimize"
            )

    def enqueue(self, runs: Sequence[Run]) -> None:
        """Enqueue the runs that are not enqueued or claimed yet, in this order."""
        with self._answering():
            queued = {trial.user_attrs.get(FINGERPRINT) for trial in self._open_trials()}
            withdrawn = set(self._study.user_attrs.get(WITHDRAWN, []))
            if again := withdrawn & {fingerprint(run) for run in runs}:
                self._study.set_user_attr(WITHDRAWN, sorted(withdrawn - again))
            for run in runs:
                key = fingerprint(run)
                if key not in queued:
                    attributes = {FINGERPRINT: key, RUN: run.model_dump(mode="json")}
                    self._study.enqueue_trial({}, user_attrs=attributes)
                    queued.add(key)

    def open_runs(self) -> list[Run]:
        """The runs that no worker has finished, in order, including interrupted ones."""
        with self._answering():
            trials = self._study.get_trials(deepcopy=False)
        newest = {
            t.user_attrs[FINGERPRINT]: t
            for t in sorted(trials, key=lambda trial: trial.number)
            if RUN in t.user_attrs
        }
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [_run(trial) for trial in newest.values() if trial.state not in ended]

    def withdraw(self, runs: Iterable[Run]) -> None:
        """Withdraw waiting runs and those of killed workers, so that no worker trains them."""
        keys = {fingerprint(run) for run in runs}
        with self._answering():
            before = self._study.user_attrs.get(WITHDRAWN, [])
            self._study.set_user_attr(WITHDRAWN, sorted({*before, *keys}))
            for trial in self._open_trials():
                waits = trial.state == TrialState.WAITING
                if waits and trial.user_attrs.get(FINGERPRINT) in keys:
                    storage = self._study._storage  # `tell` refuses trials that wait
                    storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED)

    def work(self, train: Callable[[Run], float], waiting: Callable[[int], None]) -> None:
        """Claim and train runs until none is left; waits for runs that other workers hold.

        `train` returns the final mean validation loss, or raises `optuna.TrialPruned` to drop the
        run. `waiting` is called with the number of runs that others hold while none can be claimed.
        """

        def objective(trial: optuna.Trial) -> float:
            if RUN not in trial.user_attrs:  # another worker claimed the last one
                raise optuna.TrialPruned
            if trial.user_attrs[FINGERPRINT] in self._study.user_attrs.get(WITHDRAWN, []):
                raise optuna.TrialPruned
            return train(_run(trial))

        with self._answering():
            while trials := self._open_trials():
                if any(trial.state == TrialState.WAITING for trial in trials):
                    self._study.optimize(objective, n_trials=1)
                else:
                    waiting(len(trials))
                    time.sleep(POLL_SECONDS)
                    optuna.storages.fail_stale_trials(self._study)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Raise a one-line error if the store stops answering."""
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
            raise stores.failure(self._url, "ledger", cause, "does not answer") from error

    def _open_trials(self) -> list[optuna.trial.FrozenTrial]:
        states = (TrialState.WAITING, TrialState.RUNNING)
        return self._study.get_trials(deepcopy=False, states=states)


def _run(trial: FrozenTrial | optuna.Trial) -> Run:
    """The run of a trial, with its size resolved."""
    run = Run.model_validate(trial.user_attrs[RUN])
    if run.size.config is None:
        return run
    from training.engine import model  # slow: torch

    return run.model_copy(update={"size": model.resolve(run.size)})


def _lock_transactions(engine: sqlalchemy.Engine) -> None:
    """Let SQLite take its write lock when a transaction begins.

    Optuna claims a trial by SELECT … FOR UPDATE, which SQLite does not support. Without this, two
    workers could claim the same trial.
    """

    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver starts no transactions of its own

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", connect)
    sqlalchemy.event.listen(engine, "begin", begin)
    engine.dispose()  # earlier connections

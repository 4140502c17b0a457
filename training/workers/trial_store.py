"""Optuna's relational store, with a fast and safe way to claim trials."""

from collections.abc import Callable, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from training.record import sqlite_store

SQLITE = {"connect_args": {"timeout": sqlite_store.LOCK_SECONDS}}


class TrialStore(optuna.storages.RDBStorage):
    """Finds trials by their state without reading them all, and records a trial's first heartbeat
    when it is claimed.

    Optuna starts the heartbeat a moment after the claim, and a worker that died in between would
    never count as dead.
    """

    def __init__(
        self,
        url: str,
        heartbeat_seconds: int,
        grace_seconds: int,
        on_stale: Callable[[optuna.Study, FrozenTrial], None],
    ) -> None:
        is_sqlite = url.startswith("sqlite")
        super().__init__(
            url,
            engine_kwargs=SQLITE if is_sqlite else {"pool_pre_ping": True},
            heartbeat_interval=heartbeat_seconds,
            grace_period=grace_seconds,
            heartbeat_stale_trial_callback=on_stale,
        )
        if is_sqlite:
            _lock_transactions(self.engine)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def first_waiting(self, study_id: int) -> int | None:
        """The id of the trial that was enqueued first and waits."""
        return self._number(
            "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'WAITING' "
            "ORDER BY number LIMIT 1",
            study_id,
        )

    def count_running(self, study_id: int) -> int:
        query = "SELECT count(*) FROM trials WHERE study_id = :study AND state = 'RUNNING'"
        return self._number(query, study_id) or 0

    def _number(self, query: str, study_id: int) -> int | None:
        with self.engine.connect() as connection:
            value: int | None = connection.execute(
                sqlalchemy.text(query), {"study": study_id}
            ).scalar()
            return value


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

"""Optuna's relational store, with a fast and safe way to claim trials."""

import json
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
            engine_kwargs=SQLITE if is_sqlite else _server_options(url),
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
        found = self._numbers(
            "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'WAITING' "
            "ORDER BY number LIMIT 1",
            study_id,
        )
        return found[0] if found else None

    def is_running_twice(self, study_id: int, trial_id: int, key: str, value: str) -> bool:
        """Whether an older trial with the same value of a user attribute runs too."""
        query = (
            "SELECT count(*) FROM trials JOIN trial_user_attributes AS attributes "
            "ON attributes.trial_id = trials.trial_id WHERE study_id = :study "
            "AND state = 'RUNNING' AND trials.trial_id < :trial "
            "AND attributes.key = :key AND attributes.value_json = :value"
        )
        parameters = {"trial": trial_id, "key": key, "value": json.dumps(value)}
        return bool(self._numbers(query, study_id, **parameters)[0])

    def _numbers(self, query: str, study_id: int, **parameters: object) -> list[int]:
        with self.engine.connect() as connection:
            rows = connection.execute(sqlalchemy.text(query), {"study": study_id, **parameters})
            return [int(row[0]) for row in rows]


def _server_options(url: str) -> dict[str, Any]:
    """A connection is tested before its use; one that is cut is noticed within half a minute."""
    limits = {
        "keepalives_idle": 10,
        "keepalives_interval": 10,
        "keepalives_count": 2,
        "tcp_user_timeout": 30_000,  # milliseconds
    }
    postgres = url.startswith("postgresql")
    return {"pool_pre_ping": True, **({"connect_args": limits} if postgres else {})}


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

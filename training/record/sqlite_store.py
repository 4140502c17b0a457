"""Creation of MLflow's SQLite store, all at once and by one process at a time."""

import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import mlflow
import sqlalchemy
from filelock import FileLock

from training.record.stores import failure

logger = logging.getLogger("training")

LOCK_SECONDS = 60  # timeout for another process's lock on an SQLite file
UNCHANGED_SECONDS = 5  # without a new table before a store counts as abandoned
POLL_SECONDS = 0.2
SCRATCH_SUFFIX = ".making"  # of the folder in which a store is created
VERSION = "alembic_version"  # the table with the version of MLflow's schema
COPY_PREFIX = "_alembic_tmp_"  # of the copy of a table that a migration is changing


def create(url: str) -> None:
    """Create MLflow's tables in an SQLite store that has none yet, all at once.

    MLflow creates them one after another. If its first start is interrupted, it leaves a file that
    no later start can open. Such a file is renamed, with a warning, if it holds no rows. Raises
    InputError for a file that cannot be read.
    """
    database = sqlalchemy.make_url(url).database
    if not database or database == ":memory:" or database.startswith("file:"):
        return
    path = Path(database).absolute()
    try:
        if _holds_rows(path):
            return
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        lock = Path(tempfile.gettempdir(), f"mixture-{os.getuid()}-{name}.lock")
        folder = path.with_name(f".{path.name}{SCRATCH_SUFFIX}")
        with FileLock(lock):
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
            folder.mkdir()
            try:
                _create(path, folder / path.name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except sqlite3.Error as error:
        raise failure(url, "MLflow's store", error) from error


def _create(path: Path, scratch: Path) -> None:
    """Create a store at `scratch` and move it to `path`, unless `path` is in use."""
    if set(_tables(path)) - {VERSION} and not _unchanged(path):
        return  # another process is creating it
    mlflow.MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
    existing, complete = _tables(path), _tables(scratch)
    if _holds_rows(path) or existing == complete:
        return
    if {name.removeprefix(COPY_PREFIX) for name in existing} - complete.keys():
        return  # another program's
    if existing:
        aside = path.with_name(f"{path.name}.half-made")
        path.rename(aside)
        logger.warning(
            f"{path} is incomplete: a start was interrupted while making it. It holds no runs and "
            f"was renamed to {aside.name}"
        )
    os.replace(scratch, path)


def _unchanged(path: Path) -> bool:
    """Whether the tables of a file stay unchanged and empty for a while."""
    before, since = _tables(path), time.monotonic()
    while time.monotonic() - since < UNCHANGED_SECONDS:
        time.sleep(POLL_SECONDS)
        if _holds_rows(path):
            return False
        if (now := _tables(path)) != before:
            before, since = now, time.monotonic()
    return True


def _tables(path: Path) -> dict[str, str]:
    """Name → definition of the tables of an SQLite file; empty if it does not exist."""
    rows = _read(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return {str(name): str(definition) for name, definition in rows}


def _holds_rows(path: Path) -> bool:
    """Whether an SQLite file holds any rows besides the version of MLflow's schema."""
    tables = [name.replace('"', '""') for name in _tables(path) if name != VERSION]
    return any(_read(path, f'SELECT 1 FROM "{name}" LIMIT 1') for name in tables)


def _read(path: Path, query: str) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        return connection.execute(query).fetchall()

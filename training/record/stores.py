"""Checks that folders are writable and databases answer, before they are used."""

import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import sqlalchemy
from filelock import FileLock
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from training.record import secrets
from training.record.errors import InputError, first_line

logger = logging.getLogger("training")

CONNECT_SECONDS = 10  # timeout of a database server
SERVER_SECONDS = 10  # timeout of a request to a tracking server
LOCK_SECONDS = 60  # timeout for another process's lock on an SQLite file
UNCHANGED_SECONDS = 5  # without a new table before a store counts as abandoned
POLL_SECONDS = 0.2
SCRATCH_SUFFIX = ".making"  # of the folder in which a store is created
VERSION = "alembic_version"  # the table with the version of MLflow's schema
COPY_PREFIX = "_alembic_tmp_"  # of the copy of a table that a migration is changing
DRIVERS = {  # drivers of SQLAlchemy's plain URLs, and what to pip install
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
    "pymysql": "pymysql",
}


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raise InputError if a folder, existing or not, cannot be written."""
    existing = folder
    try:
        while not (existing.exists() or existing.is_symlink()):
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"{what}: {existing} is not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{what}: {existing} cannot be written: {error.strerror}") from error


def refuse_unavailable(url: str, what: str, table: str) -> None:
    """Raise InputError if a database cannot be opened, or this user cannot write to it.

    `table` is one that the database's owner, Optuna or MLflow, creates in an empty database.
    """
    secrets.remember(url)
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite":
            _refuse_sqlite(address.database, what)
        engine = sqlalchemy.create_engine(address, connect_args=_timeout(address))
        try:
            _refuse_unwritable_database(engine, table)
        finally:
            engine.dispose()
    except InputError:
        raise
    except Exception as error:  # whatever a driver raises
        raise failure(url, what, error) from error


def make_sqlite(url: str) -> None:
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
                _make(path, folder / path.name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except sqlite3.Error as error:
        raise failure(url, "MLflow's store", error) from error


def _make(path: Path, scratch: Path) -> None:
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


def failure(url: str, what: str, error: Exception, how: str = "cannot be opened") -> InputError:
    """The one-line error for a database, from what SQLAlchemy or a driver raised."""
    secrets.remember(url)
    return InputError(f"{what} {secrets.masked(url)!r} {how}: {_reason(url, error)}")


def _reason(url: str, error: Exception) -> str:
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__  # Optuna's own message has many lines
    if url.startswith(("postgres://", "postgres+")):
        return "write postgresql:// for postgres://"
    if url.partition("://")[2].split("/")[0].count("@") > 1:
        return "its password contains an @; write %40 for it"
    if isinstance(error, ModuleNotFoundError) and error.name in DRIVERS:
        install = DRIVERS[error.name]
        return f"its driver {error.name} is not installed: pip install {install}"
    if isinstance(error, NoSuchModuleError):
        return f"SQLAlchemy does not know the database {url.partition('://')[0]!r}"
    if isinstance(error, ArgumentError | ValueError):
        return "it is not a URL like postgresql://host:5432/database"
    if isinstance(error, DBAPIError) and error.orig is not None:
        return first_line(error.orig)
    return first_line(error)


def _timeout(address: sqlalchemy.URL) -> dict[str, int]:
    """The driver's connection timeout, unless the URL sets one."""
    key = "timeout" if address.get_backend_name() == "sqlite" else "connect_timeout"
    known = ("postgresql", "mysql", "mariadb", "sqlite")
    unset = key not in address.query and address.get_backend_name() in known
    return {key: CONNECT_SECONDS} if unset else {}


def _refuse_sqlite(database: str | None, what: str) -> None:
    """Raise InputError if an SQLite file cannot be written or created."""
    if database and database != ":memory:" and not database.startswith("file:"):
        path = Path(database).absolute()
        if path.is_dir():
            raise InputError(f"{what}: {path} is a folder, not a file")
        if path.exists() and not os.access(path, os.W_OK):
            raise InputError(f"{what}: {path} cannot be written")
        refuse_unwritable(path.parent, what)


def _refuse_unwritable_database(engine: sqlalchemy.Engine, table: str) -> None:
    """Connect; in an empty PostgreSQL database, create a table and roll it back."""
    backend, file = engine.url.get_backend_name(), engine.url.database
    if backend == "sqlite" and not (file and Path(file).exists()):
        return  # connecting would create the file
    with engine.connect() as connection:
        empty = not sqlalchemy.inspect(connection).has_table(table)
        if backend == "postgresql" and empty:
            connection.exec_driver_sql("CREATE TABLE mixture_preflight (id integer)")
        connection.rollback()


@contextmanager
def short_timeouts() -> Iterator[None]:
    """MLflow retries a request twice with short timeouts, rather than for minutes."""
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SERVER_SECONDS),
    }
    previous = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in previous.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value

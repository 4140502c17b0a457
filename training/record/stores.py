"""Whether a folder can be written and a database answers, said in one line before they are used."""

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

CONNECT_SECONDS = 10  # for a database server to answer
SERVER_SECONDS = 10  # for a tracking server to answer a request
LOCK_SECONDS = 60  # to wait for another process's lock on an SQLite file
STILL_SECONDS = 5  # without a new table before a store counts as left half made
POLL_SECONDS = 0.2
MAKING = ".making"  # what the names of folders end in whose store is not whole yet
VERSION = "alembic_version"  # the table with the number of MLflow's schema
DRIVERS = {  # of SQLAlchemy's plain URLs, and how to install them
    "psycopg": '"psycopg[binary]"',
    "psycopg2": "psycopg2-binary",
    "pymysql": "pymysql",
}


def refuse_unwritable(folder: Path, what: str) -> None:
    """Raise InputError where nothing can be written to a folder, there already or not."""
    there = folder
    try:
        while not (there.exists() or there.is_symlink()):
            there = there.parent
        if not there.is_dir():
            raise InputError(f"{what}: {there} is not a folder")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{what}: {there} cannot be written: {error.strerror}") from error


def refuse_unanswering(url: str, what: str, table: str) -> None:
    """Raise InputError where a database cannot be opened, or not written by this user.

    `table` is one of those that the database's owner, Optuna or MLflow, makes in an empty one.
    """
    secrets.remember(url)
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite":
            _refuse_sqlite(address.database, what)
        engine = sqlalchemy.create_engine(address, connect_args=_patience(address))
        try:
            _refuse_closed(engine, table)
        finally:
            engine.dispose()
    except InputError:
        raise
    except Exception as error:  # whatever a driver raises
        raise failure(url, what, error) from error


def make_sqlite(url: str) -> None:
    """Make MLflow's tables in an SQLite store that has none yet, all at once.

    MLflow makes them one after another: a first start that is interrupted meanwhile would leave a
    file that no later start can open. A file that was left so, and holds no row, is set aside,
    which the terminal says. Raises InputError for a file that cannot be read.
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
        folder = path.with_name(f".{path.name}{MAKING}")
        with FileLock(lock):
            shutil.rmtree(folder, ignore_errors=True)  # a killed start's
            folder.mkdir()
            try:
                _make(path, folder / path.name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except sqlite3.Error as error:
        raise failure(url, "MLflow's store", error) from error


def _make(path: Path, scratch: Path) -> None:
    """Put a store made at `scratch` at `path`, unless that is one or holds something else."""
    if set(_tables(path)) - {VERSION} and not _keeps_still(path):
        return  # somebody makes it just now
    mlflow.MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
    there, whole = _tables(path), _tables(scratch)
    if _holds_rows(path) or there == whole or there.keys() - whole.keys():
        return
    if there:
        aside = path.with_name(f"{path.name}.half-made")
        path.rename(aside)
        logger.warning(
            f"{path} is incomplete: a start was interrupted while making it. It holds no runs and "
            f"was renamed to {aside.name}"
        )
    os.replace(scratch, path)


def _keeps_still(path: Path) -> bool:
    """Whether the tables of a file stay as they are for a while, and empty."""
    before, since = _tables(path), time.monotonic()
    while time.monotonic() - since < STILL_SECONDS:
        time.sleep(POLL_SECONDS)
        if _holds_rows(path):
            return False
        if (now := _tables(path)) != before:
            before, since = now, time.monotonic()
    return True


def _tables(path: Path) -> dict[str, str]:
    """Name → definition of the tables of an SQLite file; none where it is not there."""
    rows = _read(path, "SELECT name, sql FROM sqlite_master WHERE type = 'table'")
    return {str(name): str(definition) for name, definition in rows}


def _holds_rows(path: Path) -> bool:
    """Whether an SQLite file holds anything but the number of MLflow's schema."""
    tables = [name.replace('"', '""') for name in _tables(path) if name != VERSION]
    return any(_read(path, f'SELECT 1 FROM "{name}" LIMIT 1') for name in tables)


def _read(path: Path, query: str) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        return connection.execute(query).fetchall()


def failure(url: str, what: str, error: Exception, how: str = "cannot be opened") -> InputError:
    """The one line for a database that fails, by what SQLAlchemy or a driver raised."""
    secrets.remember(url)
    return InputError(f"{what} {secrets.masked(url)!r} {how}: {_reason(url, error)}")


def _reason(url: str, error: Exception) -> str:
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__  # Optuna's own is of many lines
    if url.startswith(("postgres://", "postgres+")):
        return "write postgresql:// for postgres://"
    if url.partition("://")[2].split("/")[0].count("@") > 1:
        return "its password contains an @; write %40 for it"
    if isinstance(error, ModuleNotFoundError) and error.name in DRIVERS:
        install = DRIVERS[error.name]
        return f"its driver {error.name} is not installed: pip install {install}"
    if isinstance(error, NoSuchModuleError):
        return f"SQLAlchemy knows no database {url.partition('://')[0]!r}"
    if isinstance(error, ArgumentError | ValueError):
        return "it is not a URL like postgresql://host:5432/database"
    if isinstance(error, DBAPIError) and error.orig is not None:
        return first_line(error.orig)
    return first_line(error)


def _patience(address: sqlalchemy.URL) -> dict[str, int]:
    """How long the driver waits."""
    key = "timeout" if address.get_backend_name() == "sqlite" else "connect_timeout"
    known = ("postgresql", "mysql", "mariadb", "sqlite")
    given = key in address.query or address.get_backend_name() not in known
    return {} if given else {key: CONNECT_SECONDS}


def _refuse_sqlite(database: str | None, what: str) -> None:
    """An SQLite file is made in a folder that can be written."""
    if database and database != ":memory:" and not database.startswith("file:"):
        path = Path(database).absolute()
        if path.is_dir():
            raise InputError(f"{what}: {path} is a folder, not a file")
        if path.exists() and not os.access(path, os.W_OK):
            raise InputError(f"{what}: {path} cannot be written")
        refuse_unwritable(path.parent, what)


def _refuse_closed(engine: sqlalchemy.Engine, table: str) -> None:
    """Connect, and make a table and take it back where the database is still empty."""
    backend, file = engine.url.get_backend_name(), engine.url.database
    if backend == "sqlite" and not (file and Path(file).exists()):
        return  # looking would make the file
    with engine.connect() as connection:
        empty = not sqlalchemy.inspect(connection).has_table(table)
        if backend == "postgresql" and empty:
            connection.exec_driver_sql("CREATE TABLE mixture_preflight (id integer)")
        connection.rollback()


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow asks a server a few times, each for seconds, and not for minutes."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SERVER_SECONDS),
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value

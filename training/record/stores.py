"""Checks that folders are writable and databases answer, before they are used."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from training.record import secrets
from training.record.errors import InputError, first_line

CONNECT_SECONDS = 10  # timeout of a database server
SERVER_SECONDS = 10  # timeout of a request to a tracking server
SHORT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SERVER_SECONDS),
}
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


def unanswered(error: Exception) -> str:
    """Why a server does not answer, in a few words."""
    text = first_line(error)
    if "Max retries exceeded" not in text:
        return text
    cause = re.search(r"\[Errno -?\d+\] [\w ]+|[\w ]*timed out|Connection aborted", text)
    return f"it does not answer ({cause[0].strip() if cause else 'no connection'})"


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
    """MLflow retries a request twice with short timeouts, rather than for minutes.

    The settings are those of the process: they hold until the last thread has left.
    """
    with _SHORT.lock:
        if not _SHORT.users:
            _SHORT.previous = {key: os.environ.get(key) for key in SHORT}
            os.environ.update(SHORT)
        _SHORT.users += 1
    try:
        yield
    finally:
        with _SHORT.lock:
            _SHORT.users -= 1
            if not _SHORT.users:
                for key, value in _SHORT.previous.items():
                    os.environ.pop(key, None)
                    if value is not None:
                        os.environ[key] = value


@contextmanager
def request_timeout(seconds: int) -> Iterator[None]:
    """The server may take so long for a request, such as a large file."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    previous = os.environ.get(key)
    os.environ[key] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(key)
        if previous is not None:
            os.environ[key] = previous


@dataclass
class _ShortTimeouts:
    """Who needs short timeouts, and the settings before."""

    users: int = 0
    previous: dict[str, str | None] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_SHORT = _ShortTimeouts()

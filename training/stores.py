"""Whether a folder can be written and a database answers, said in one line before they are used."""

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import mlflow
import psutil
import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from training import secrets
from training.errors import InputError, first_line

CONNECT_SECONDS = 10  # for a database server to answer
SERVER_SECONDS = 10  # for a tracking server to answer a request
LOCK_SECONDS = 60  # to wait for another process's lock on an SQLite file
STILL_SECONDS = 5  # without a new table before a store counts as left half made
POLL_SECONDS = 0.2
MAKING = ".making"  # what the names of folders end in whose store is not whole yet
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
    file that no later start can open. A file that was left so, and holds no experiment, is set
    aside, which the terminal says.
    """
    database = sqlalchemy.make_url(url).database
    if not database or database == ":memory:" or database.startswith("file:"):
        return
    path = Path(database).absolute()
    if _half_made(path):
        aside = path.with_name(f"{path.name}.half-made")
        path.rename(aside)
        print(
            f"{path} was left half made by a start that was interrupted; it holds no runs, and is "
            f"set aside as {aside.name}",
            file=sys.stderr,
        )
    if _tables(path):
        return
    for left in path.parent.glob(f".{path.name}.*{MAKING}"):
        if not psutil.pid_exists(int(left.name.split(".")[-2])):
            shutil.rmtree(left, ignore_errors=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}{MAKING}")
    folder.mkdir(exist_ok=True)
    scratch = folder / path.name
    try:
        mlflow.MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)
        if not _tables(path):
            path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # another process was faster
                os.link(scratch, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _half_made(path: Path) -> bool:
    """Whether an SQLite file has tables but not MLflow's first experiment, which is made last, and
    nobody makes it now."""
    before, since = None, time.monotonic()
    while (now := _tables(path)) and not _has_experiment(path):
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > STILL_SECONDS:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _tables(path: Path) -> list[str]:
    """The tables and indexes of an SQLite file; none where it is not there."""
    return [str(name) for (name,) in _read(path, "SELECT name FROM sqlite_master")]


def _has_experiment(path: Path) -> bool:
    return bool(_read(path, "SELECT 1 FROM experiments LIMIT 1"))


def _read(path: Path, query: str) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # no such table
            return []


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

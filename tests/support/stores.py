"""Tracking stores of the tests' own."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow
import pytest


@cache
def tables() -> Path:
    """A file with MLflow's tables, which take seconds to make: stores are copies of it. It has no
    experiment, whose place its first use chooses."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "mlflow.db")
    mlflow.MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@contextmanager
def empty_store(folder: Path, *, existing: bool = True) -> Iterator[str]:
    """An empty SQLite tracking store, existing or not, with its artifacts in a folder."""
    if existing:
        shutil.copy(tables(), folder / "mlflow.db")
    uri, before = f"sqlite:///{folder}/mlflow.db", mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        mlflow.set_tracking_uri(uri)
        yield uri
        while mlflow.active_run():
            mlflow.end_run()
        mlflow.set_tracking_uri(before)

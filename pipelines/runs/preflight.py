"""Checks of what a command needs, before it writes, tokenises, trains or fits anything.

Each function raises InputError in one line. Checks of a single command are in its module.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow.exceptions import MlflowException

from pipelines.study.study import Study
from training.engine.devices import Machines, check_compiler, visible_gpus
from training.record import sqlite_store, stores
from training.record.errors import InputError
from training.workers import launcher

DATABASES = ("postgresql", "postgres", "mysql", "mssql", "sqlite")


def tracking_store() -> None:
    """MLflow's tracking store answers; checked before a run is started in it."""
    _store(mlflow.get_tracking_uri(), "tracking store (MLFLOW_TRACKING_URI)", "experiments")


def registry_and_artifacts(active: mlflow.ActiveRun) -> None:
    """The model registry answers, and the active run's artifacts can be written."""
    registry = mlflow.get_registry_uri()
    if registry != mlflow.get_tracking_uri():
        _store(registry, "model registry (MLFLOW_REGISTRY_URI)", "registered_models")
    place = urlsplit(active.info.artifact_uri)
    if place.scheme in ("", "file"):
        stores.refuse_unwritable(Path(unquote(place.path)), "artifacts of this MLflow run")


def preparing(study: Study) -> None:
    """The workspace can be written."""
    stores.refuse_unwritable(study.workspace, "workspace")


def training(
    study: Study,
    machines: Machines,
    sizes: Sequence[str],
    *,
    queued: bool = True,
    here: bool = True,
) -> None:
    """Models of these sizes can be trained; `queued`: the ledger distributes the runs; `here`: this
    machine trains."""
    preparing(study)
    if here and machines.hostfile is None and not visible_gpus():
        check_compiler()
    study.engine.micro_batch(study.training, machines.ranks)
    if machines.hostfile is not None:
        launcher.refuse_unreachable(machines.hostfile)
    for name in dict.fromkeys(sizes):
        _config(study, name)
    if queued:
        ledger(study)


def ledger(study: Study) -> None:
    """The ledger answers; a ledger in the workspace needs no check."""
    if study.ledger is not None:
        stores.refuse_unavailable(study.ledger, "ledger", "studies")


def output(path: Path) -> None:
    """A file can be written."""
    if not path.parent.is_dir():
        raise InputError(f"output: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"output: {path} is a folder, not a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"output: {path} cannot be written")
    stores.refuse_unwritable(path.parent, "output")


def _config(study: Study, name: str) -> None:
    """The Transformers config of a size, if it has one, can be loaded and sees a whole sequence."""
    config = study.size(name).config
    if config is not None:
        from training.engine import model  # slow: torch

        what = f"sizes.{name}: config {config!r}"
        model.refuse_short(model.load_config(config, what), what, study.training.sequence_length)


def _store(uri: str, what: str, table: str) -> None:
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise InputError(f"{what} {uri!r} is not a URL: {error}") from error
    if scheme.partition("+")[0] in DATABASES:
        stores.refuse_unavailable(uri, what, table)
        if scheme == "sqlite":
            sqlite_store.create(uri)
    elif scheme == "file" or (not scheme and uri != "databricks"):
        stores.refuse_unwritable(Path(unquote(urlsplit(uri).path)), what)
    elif scheme in ("http", "https"):
        try:
            with stores.short_timeouts():
                client = mlflow.MlflowClient(uri, uri)
                if table == "experiments":
                    client.search_experiments(max_results=1)
                else:
                    client.search_registered_models(max_results=1)
        except MlflowException as error:
            reason = stores.unanswered(error)
            raise InputError(f"{what} {uri!r} cannot be used: {reason}") from error

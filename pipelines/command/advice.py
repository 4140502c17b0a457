"""What to type next: commands and addresses that work with the stores in use."""

import shlex
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow.entities import Run

from training.record import secrets

LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` answers


def command(entry: str, experiment_id: str, **parameters: str) -> str:
    """The `mlflow run` of an entry point in an experiment."""
    name = str(mlflow.get_experiment(experiment_id).name)
    parts = ["mlflow", "run", ".", "--env-manager", "uv", "-e", entry]
    parts += ["--experiment-name", name] if name != "Default" else []
    for key, value in parameters.items():
        parts += ["-P", f"{key}={value}"]
    return shlex.join(parts)


def look_at(run: Run) -> str:
    """Where a run is seen in MLflow: an address, after a command where no server runs yet."""
    uri, page = mlflow.get_tracking_uri(), _page(run)
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        return f"{secrets.masked(uri).rstrip('/')}/{page}"
    if scheme.startswith("databricks"):
        return f"run {run.info.run_id} in Databricks"
    given = f"--backend-store-uri {_written(uri, 'MLFLOW_TRACKING_URI')}"
    registry = mlflow.get_registry_uri()
    if registry != uri:
        given += f" --registry-store-uri {_written(registry, 'MLFLOW_REGISTRY_URI')}"
    return f"mlflow ui {given}   then {LOCAL}/{page}"


def _page(run: Run) -> str:
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _written(uri: str, variable: str) -> str:
    """A store's URI as a shell takes it from any folder; one with a secret by its variable."""
    if secrets.masked(uri) != uri:
        return f'"${variable}"'
    if uri.startswith("sqlite:"):
        database = sqlalchemy.make_url(uri).database
        return shlex.quote(f"sqlite:///{Path(database).absolute()}" if database else uri)
    if "://" not in uri and not uri.startswith("file:"):
        return shlex.quote(str(Path(uri).absolute()))
    return shlex.quote(uri)

"""What to type next: commands and URLs that work with the stores in use."""

import shlex
from pathlib import Path

import mlflow
import sqlalchemy
from mlflow.entities import Run

from training.record import markdown, secrets

LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` answers


def command(entry: str, experiment_id: str, **parameters: str) -> str:
    """The `mlflow run` of an entry point in an experiment."""
    name = str(mlflow.get_experiment(experiment_id).name)
    parts = ["mlflow", "run", ".", "--env-manager", "uv", "-e", entry]
    parts += ["--experiment-name", name] if name != "Default" else []
    for key, value in parameters.items():
        parts += ["-P", f"{key}={value}"]
    return shlex.join(parts)


def look_at(run: Run, artifact: str = "") -> str:
    """Where to see a run, or one of its artifacts, in MLflow: a URL, after a command if no server
    is known to run."""
    uri, page = mlflow.get_tracking_uri(), markdown.run_page(run, artifact)
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        return f"{secrets.masked(uri).rstrip('/')}/{page}"
    if scheme.startswith("databricks"):
        return f"run {run.info.run_id} in Databricks"
    options = f"--backend-store-uri {_written(uri, 'MLFLOW_TRACKING_URI')}"
    registry = mlflow.get_registry_uri()
    if registry != uri:
        options += f" --registry-store-uri {_written(registry, 'MLFLOW_REGISTRY_URI')}"
    return f"mlflow ui {options}   then {LOCAL}/{page}"


def _written(uri: str, variable: str) -> str:
    """A store's URI, quoted for a shell in any folder; a URI with a secret as its variable."""
    if secrets.masked(uri) != uri:
        return f'"${variable}"'
    if uri.startswith("sqlite:"):
        database = sqlalchemy.make_url(uri).database
        return shlex.quote(f"sqlite:///{Path(database).absolute()}" if database else uri)
    if "://" not in uri and not uri.startswith("file:"):
        return shlex.quote(str(Path(uri).absolute()))
    return shlex.quote(uri)

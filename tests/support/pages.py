"""What MLflow shows of a store, and where its descriptions lead."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote

import mlflow
from mlflow.exceptions import MlflowException

from training.record import keys
from training.record.mlflow_runs import search

SECONDS = 90  # that a server may take to start
ADDRESS = re.compile(r"\]\(([^)\s]+)\)")


def descriptions() -> dict[str, str]:
    """The descriptions of all experiments, runs, registered models and versions, by what has it."""
    client = mlflow.MlflowClient()
    experiments = mlflow.search_experiments()
    noted = {f"experiment {e.name}": e.tags.get(keys.NOTE, "") for e in experiments}
    for run in search([e.experiment_id for e in experiments], ""):
        noted[f"run {run.info.run_name}"] = run.data.tags.get(keys.NOTE, "")
    for model in client.search_registered_models():
        noted[f"model {model.name}"] = model.description or ""
        for version in client.search_model_versions(f"name = '{model.name}'"):
            noted[f"version {version.version} of {model.name}"] = version.description or ""
    return noted


def dead_links() -> list[str]:
    """The addresses in descriptions that lead nowhere; there must be some that lead somewhere."""
    found = {a for text in descriptions().values() for a in ADDRESS.findall(text)}
    assert found
    return sorted(address for address in found if not _leads_somewhere(address))


def _leads_somewhere(address: str) -> bool:
    client = mlflow.MlflowClient()
    path, _, query = address.partition("?")
    options = {key: values[0] for key, values in parse_qs(query).items()}
    try:
        if match := re.fullmatch(r"#/experiments/(\d+)/runs/(\w+)(?:/artifacts/(.+))?", path):
            experiment, run_id, artifact = match.groups()
            exists = artifact is None or has_artifact(run_id, unquote(artifact))
            return client.get_run(run_id).info.experiment_id == experiment and exists
        if match := re.fullmatch(r"#/experiments/(\d+)/runs", path):
            tags = mlflow.get_experiment(match[1]).tags
            return f"mlflow.sharedViewState.{options['viewStateShareKey']}" in tags
        if match := re.fullmatch(r"#/models/(.+)/versions/(\d+)", path):
            return bool(client.get_model_version(unquote(match[1]), match[2]))
        return path == "get-artifact" and has_artifact(options["run_uuid"], options["path"])
    except MlflowException:
        return False


def has_artifact(run_id: str, path: str) -> bool:
    folder = path.rpartition("/")[0]
    return path in {a.path for a in mlflow.MlflowClient().list_artifacts(run_id, folder or None)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(store: str, folder: Path) -> Iterator[str]:
    """The address of an `mlflow server` of a store."""
    port = free_port()
    command = ["mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

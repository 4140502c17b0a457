"""What is printed to be typed next works as it is printed."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest

from pipelines.command import advice

PATIENCE = 120  # seconds, for a server to answer on a busy machine


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answer(url: str, server: "subprocess.Popen[bytes]") -> bytes:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url) as response:
                return bytes(response.read())
        except urllib.error.URLError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.slow
def test_look_at_it_serves_the_run_from_any_folder(
    store: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert store
    with mlflow.start_run(run_name="the answer") as active:
        pass
    command, _, page = advice.look_at(active).partition("   then ")
    port, elsewhere = free_port(), tmp_path_factory.mktemp("elsewhere")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    server = subprocess.Popen(
        f"exec {command} --port {port} --workers 1",
        shell=True,
        cwd=elsewhere,
        env=clean,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        there = f"http://127.0.0.1:{port}"
        asked = f"{there}/api/2.0/mlflow/runs/get?run_id={active.info.run_id}"
        assert json.loads(answer(asked, server))["run"]["info"]["run_name"] == "the answer"
        assert b"<html" in answer(page.replace(advice.LOCAL, there).partition("#")[0], server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "http://tracking:5000/",
            "http://tracking:5000/#/experiments/3/runs/abc?workflowType=machine_learning",
        ),
        (
            "postgresql://me:secret@db/mlflow",
            'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"   then '
            "http://127.0.0.1:5000/#/experiments/3/runs/abc?workflowType=machine_learning",
        ),
        ("databricks", "run abc in Databricks"),
    ],
)
def test_look_at_it_knows_other_stores_and_keeps_secrets(
    uri: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = mlflow.entities.RunInfo("abc", "3", "me", "FINISHED", 0, 1, "active")
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: uri)
    assert advice.look_at(mlflow.entities.Run(info, None)) == expected


def test_a_command_is_one_that_a_shell_takes(store: str, tmp_path: Path) -> None:
    assert store
    experiment = mlflow.create_experiment("my runs", str(tmp_path / "artifacts"))
    told = advice.command("fit", experiment, runs="tags.study = 'it-1a2b'", model="p")
    assert shlex.split(told)[:7] == ["mlflow", "run", ".", "--env-manager", "uv", "-e", "fit"]
    assert shlex.split(told)[7:] == [
        "--experiment-name",
        "my runs",
        "-P",
        "runs=tags.study = 'it-1a2b'",
        "-P",
        "model=p",
    ]

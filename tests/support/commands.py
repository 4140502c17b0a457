"""The commands, as a user starts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow

from pipelines.command import table

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds, for a busy machine


def call(command: ModuleType, **given: str) -> None:
    """A command with these parameters, as texts, in the active run."""
    active = mlflow.active_run()
    assert active is not None
    command.main(table.read(command.Parameters, given), active)


def run_entry(
    name: str, *parameters: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`python -m pipelines NAME` from the project's folder, as `mlflow run` would."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", name, *parameters],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


def take_ctrl_c() -> None:
    """For `preexec_fn`: a process of a shell's background, as these tests may be, ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(*command: str) -> "subprocess.Popen[str]":
    """An entry point that runs in a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take_ctrl_c,
    )


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found

"""What the tests share: temporary stores, a miniature study on local files, synthetic runs."""

import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import pytest
import yaml

from pipelines.command import table
from tests import postgres
from training.record import secrets

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def scripts_on_path() -> None:
    """What an activated environment gives: its commands on the PATH."""
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])


@pytest.fixture(autouse=True)
def _no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())


def call(command: ModuleType, **given: str) -> None:
    """A command with these parameters, as texts, in the active run."""
    active = mlflow.active_run()
    assert active is not None
    command.main(table.read(command.Parameters, given), active)


@contextmanager
def empty_store(folder: Path) -> Iterator[str]:
    """An empty SQLite tracking store with its artifacts in a folder."""
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A store of the test's own."""
    with empty_store(tmp_path) as uri:
        yield uri


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL that asks for a password."""
    with postgres.server() as found:
        yield found


@pytest.fixture(scope="session")
def texts() -> dict[str, list[str]]:
    """Three made-up domains with words of their own: domain → documents."""
    rng = random.Random(0)
    sentences = {
        "news": "the market rose as officials said prices fell in spring trade talks",
        "code": "def return self if else for in range print len import value = ( ) :",
        "math": "let x be a real number such that the sum of squares is less than one",
    }
    vocabularies = {name: sentence.split() for name, sentence in sentences.items()}
    return {
        name: [" ".join(rng.choices(words, k=120)) for _ in range(400)]
        for name, words in vocabularies.items()
    }


@pytest.fixture
def miniature(tmp_path: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    """A study of seconds on local JSONL files, as the mapping a study file holds."""
    return miniature_study(tmp_path, texts)


def miniature_study(folder: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    """The same in a folder."""
    for name, documents in texts.items():
        lines = (json.dumps({"text": document}) for document in documents)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "name": "miniature",
        "domains": {name: {"files": f"{name}.jsonl"} for name in texts},
        "default_mixture": {"news": 0.6, "code": 0.3, "math": 0.1},
        "tokenizer": {"vocab_size": 320},
        "validation": {"fraction": 0.1, "tokens": 1024},
        "sizes": {
            "tiny": {"hidden_size": 16, "layers": 1, "heads": 1},
            "small": {"hidden_size": 32, "layers": 1, "heads": 2},
        },
        "training": {
            "sequence_length": 32,
            "batch_size": 8,
            "steps": 12,
            "warmup_steps": 4,
            "first_evaluation": 4,
            "evaluations": 3,
        },
        "sweep": {"mixtures": 4, "sizes": ["tiny", "small"]},
        "target": {"size": "small", "steps": 18, "seeds": [0, 1]},
        "search": {"trials": 60},
        "workspace": str(folder / "workspace"),
    }


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes a study file and returns its path."""

    return lambda study: written(tmp_path, study)


def written(folder: Path, study: dict[str, Any]) -> str:
    """The path of a study file in a folder."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


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


@pytest.fixture
def crew_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are trained by one worker in a thread of this process, real but for its start."""

    def train(runs: Any, corpus: Any, work: Any, machines: Any) -> None:
        from training.engine import devices
        from training.workers import ledger, messages, worker

        told: list[Any] = []
        ledger.Ledger(work.ledger_url, work.name).enqueue(runs)
        job = messages.Job(work, mlflow.get_tracking_uri(), corpus.manifest, machines)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
            for name in ("interrupt_on_signals", "ignore_signals"):  # for main threads only
                patch.setattr(worker, name, lambda: None)
            patch.setattr(devices.Machines, "threads", 1)
            thread.submit(worker.main, job, 0, told.append).result()
        for event in told:
            if isinstance(event, messages.Failed):
                raise event.error

    monkeypatch.setattr("training.workers.pool.train", train)

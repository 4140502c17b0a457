"""Fixtures that tests of several folders take."""

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import settings

from tests.support import postgres
from tests.support.stores import empty_store
from tests.support.studies import WriteStudy, made_up_texts, miniature_study, written
from training.record import secrets

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first: two processes then end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def scripts_on_path() -> None:
    """What an activated environment gives: its commands on the PATH."""
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> None:
    secrets.forget()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A store of the test's own."""
    with empty_store(tmp_path) as uri:
        yield uri


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[str]:
    """A store that its first use makes."""
    with empty_store(tmp_path, existing=False) as uri:
        yield uri


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL that asks for a password."""
    with postgres.server() as found:
        yield found


@pytest.fixture(scope="session")
def texts() -> dict[str, list[str]]:
    """Three made-up domains with words of their own: domain → documents."""
    return made_up_texts()


@pytest.fixture
def miniature(tmp_path: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    """A study of seconds on local JSONL files, as the mapping a study file holds."""
    return miniature_study(tmp_path, texts)


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    """Writes a study file and returns its path."""

    return lambda study: written(tmp_path, study)


@pytest.fixture
def single_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are trained by one worker in a thread of this process, real but for its start."""

    def train(runs: Any, corpus: Any, work: Any, machines: Any) -> None:
        from training.delivery.courier import Courier
        from training.engine import devices
        from training.run import fingerprint
        from training.workers import ledger, messages, worker

        told: list[Any] = []
        if isinstance(work, messages.Queue):
            ledger.Ledger(work.ledger_url, work.name).enqueue(runs)
        job = messages.Job(work, mlflow.get_tracking_uri(), corpus.manifest, machines)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
            for name in ("interrupt_on_signals", "ignore_signals"):  # for main threads only
                patch.setattr(worker, name, lambda: None)
            patch.setattr(devices.Machines, "threads", 1)
            courier = Courier(runs[0].workspace)
            with courier.running():
                thread.submit(worker.main, job, 0, told.append).result()
                courier.finish({fingerprint(run) for run in runs}, 1, lambda _: None)
        for event in told:
            if isinstance(event, messages.Failed):
                raise event.error

    monkeypatch.setattr("training.workers.pool.train", train)

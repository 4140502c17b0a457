"""The ledger: every run claimed once, whoever dies."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from tests.support.postgres import Server
from tests.support.tiny_runs import RUNS, unprepared
from training.record.errors import InputError
from training.workers import ledger
from training.workers.ledger import Claim, Ledger, Trained


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty ledger's URL, in each kind of store."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server: Server = request.getfixturevalue("server")
    yield server.database()


def trained_by(book: Ledger) -> list[str]:
    names: list[str] = []

    def train(claim: Claim) -> Trained:
        names.append(claim.run.name)
        return Trained(1.0)

    book.work(train, lambda *_: None)
    return names


def test_runs_are_claimed_in_order_and_once(url: str) -> None:
    book = Ledger(url, "sweep")
    book.enqueue(RUNS[:3])
    book.enqueue(RUNS)  # three of them are waiting already
    assert trained_by(book) == [r.name for r in RUNS]
    assert trained_by(book) == []
    assert trained_by(Ledger(url, "another sweep")) == []


def _work(url: str, folder: Path) -> None:
    def train(claim: Claim) -> Trained:
        with (folder / claim.run.name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return Trained(1.0)

    Ledger(url, "sweep").work(train, lambda *_: None)


@pytest.mark.slow
def test_several_workers_share_the_runs(url: str, tmp_path: Path) -> None:
    many = [unprepared(f"run{i:02}", i) for i in range(24)]
    Ledger(url, "sweep").enqueue(many)
    folder = tmp_path / "trained"
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=_work, args=(url, folder)) for _ in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(120)
    assert [process.exitcode for process in crew] == [0, 0, 0]
    lines = {path.name: path.read_text().splitlines() for path in folder.iterdir()}
    assert sorted(lines) == [r.name for r in many]
    assert all(len(pids) == 1 for pids in lines.values())


def test_an_interrupted_run_is_planned_again(url: str) -> None:
    book = Ledger(url, "sweep")
    book.enqueue(RUNS)

    def interrupted(claim: Claim) -> Trained:
        if claim.run.name == "run2":
            raise KeyboardInterrupt
        return Trained(1.0)

    with pytest.raises(KeyboardInterrupt):
        book.work(interrupted, lambda *_: None)
    book.enqueue(RUNS[2:])
    assert sorted(trained_by(book)) == ["run2", "run3", "run4"]


def _die(url: str) -> None:
    ledger.HEARTBEAT_SECONDS, ledger.GRACE_SECONDS = 1, 2

    def train(_: Claim) -> Trained:
        time.sleep(1.5)  # its heart has beaten
        os._exit(9)

    Ledger(url, "sweep").work(train, lambda *_: None)


def _die_at_once(url: str) -> None:
    """Before the thread that keeps the heart beating records its first beat."""
    record = optuna.storages.RDBStorage.record_heartbeat

    def beat(storage: optuna.storages.RDBStorage, trial_id: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            os._exit(9)
        record(storage, trial_id)

    optuna.storages.RDBStorage.record_heartbeat = beat  # type: ignore[assignment]
    _die(url)


@pytest.mark.slow
@pytest.mark.parametrize("death", [_die, _die_at_once])
def test_the_run_of_a_dead_worker_is_claimed_again(
    url: str, death: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(ledger, "GRACE_SECONDS", 2)
    book = Ledger(url, "sweep")
    book.enqueue(RUNS[:2])
    process = multiprocessing.get_context("spawn").Process(target=death, args=(url,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert sorted(trained_by(book)) == ["run0", "run1"]


def test_a_ledger_that_cannot_be_opened_is_one_clear_error(server: Server) -> None:
    with pytest.raises(InputError, match=r"ledger 'sqlite:////no/such/folder/l\.db' cannot be op"):
        Ledger("sqlite:////no/such/folder/l.db", "sweep")
    with pytest.raises(InputError, match=r"'postgres://sweeper:\*\*\*@.*: write postgresql://"):
        Ledger(server.url().replace("postgresql", "postgres"), "sweep")


def test_a_ledger_that_stops_answering_is_one_clear_error(server: Server) -> None:
    book = Ledger(server.database(), "sweep")
    book.enqueue(RUNS)
    server.run(f"DROP DATABASE test{server.databases} WITH (FORCE)")
    with pytest.raises(InputError, match=r"^ledger '.*:\*\*\*@.*' does not answer: [^\n]+$"):
        book.work(lambda _: Trained(1.0), lambda *_: None)


def test_the_url_of_another_driver_goes_on_working(server: Server) -> None:
    url = server.database().replace("postgresql:", "postgresql+psycopg2:")
    book = Ledger(url, "sweep")
    book.enqueue(RUNS[:1])
    assert trained_by(book) == ["run0"]


def test_an_interrupted_proposal_still_waits(tmp_path: Path) -> None:
    book = Ledger(f"sqlite:///{tmp_path}/ledger.db", "sweep")
    book.enqueue(RUNS[:3])

    def train(claim: Claim) -> Trained:
        if claim.run == RUNS[1]:
            raise KeyboardInterrupt
        return Trained(1.0)

    with pytest.raises(KeyboardInterrupt):
        book.work(train, lambda *_: None)
    assert book.open_runs() == RUNS[1:3]
    book.enqueue(book.open_runs())
    book.work(lambda _: Trained(1.0), lambda *_: None)
    assert book.open_runs() == []


def test_a_withdrawn_run_is_trained_by_nobody_until_it_is_planned_again(tmp_path: Path) -> None:
    book, trained = Ledger(f"sqlite:///{tmp_path}/ledger.db", "sweep"), []

    def train(claim: Claim) -> Trained:
        trained.append(claim.run)
        if len(trained) == 1:
            raise KeyboardInterrupt
        return Trained(1.0)

    book.enqueue(RUNS[:3])
    with pytest.raises(KeyboardInterrupt):
        book.work(train, lambda *_: None)
    book.withdraw(RUNS[:2])  # one that was begun and one that waits
    book.work(train, lambda *_: None)
    assert trained == [RUNS[0], RUNS[2]]
    book.enqueue(RUNS[:2])
    assert book.open_runs() == RUNS[:2]
    book.work(train, lambda *_: None)
    assert trained[2:] == RUNS[:2]

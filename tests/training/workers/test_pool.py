"""Workers that train, log and go on: after a kill, without a server, on several machines."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run as MlflowRun

from tests.benchmarks import stores
from tests.support.tiny_runs import DOMAINS, TRAINING, evaluations, planned
from training.config import Engine, Size
from training.data.corpus import Corpus
from training.delivery import outbox
from training.delivery.courier import Courier
from training.delivery.outbox import Outbox
from training.engine import checkpoint, devices
from training.engine.checkpoint import Checkpoint
from training.engine.devices import free_port
from training.engine.evaluation import Evaluator
from training.engine.trainer import Trainer
from training.record import keys
from training.record.errors import InputError
from training.record.history import Evaluation, history_from_tags
from training.run import Run, fingerprint
from training.workers import launcher, one_run, pool, worker
from training.workers.ledger import Ledger
from training.workers.messages import Crashed, Event, Finished, Job, Note, Queue

pytestmark = pytest.mark.usefixtures("cpu")

LONG = TRAINING.model_copy(update={"steps": 300, "evaluations": 6})


def queue(store: str, folder: Path, run: Run) -> Queue:
    """A sweep whose study has the workspace and the engine of `run`."""
    mlflow.set_tracking_uri(store)
    parent = mlflow.MlflowClient().create_run("0").info.run_id
    url = f"sqlite:///{folder}/ledger.db"
    return Queue(url, "sweep", "0", parent, run.workspace, run.engine)


@contextmanager
def training(run: Run, corpus: Corpus, store: str, folder: Path) -> "Iterator[Future[None]]":
    """A sweep of one run in another thread, which has saved a checkpoint."""
    checkpoint.remove(run)
    machines = devices.Machines(devices.cores())
    with ThreadPoolExecutor(1) as thread:
        work = queue(store, folder, run)
        sweep = thread.submit(pool.train, [run], corpus, work, machines)
        deadline = time.monotonic() + 240
        while (saved := checkpoint.find(run, 1)) is None or saved.step < 60:
            assert not sweep.done(), sweep.result()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield sweep


def wait_for_end(run: Run) -> None:
    """Until its training has ended, and its log waits for the server."""
    deadline = time.monotonic() + 240
    while not any(box.end() for box in outbox.of_run(run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def train_and_log(run: Run, corpus: Corpus, run_id: str, saved: Checkpoint | None = None) -> None:
    box = Outbox.create(run, "0", run_id=run_id)
    try:
        one_run.train_and_log(run, corpus, box, saved, lambda _: None)
    finally:
        Courier(run.workspace).deliver()


def points(run: MlflowRun, key: str) -> dict[int, float]:
    """A metric by step, each step once."""
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
    assert len({m.step for m in found}) == len(found), key
    return {m.step: m.value for m in found}


def assert_whole(done: MlflowRun, run: Run, corpus: Corpus) -> None:
    """That a run has every point once, those of a run that was trained at one go."""
    assert done.info.status == "FINISHED"
    assert done.data.tags[keys.COMPLETE] == "true"
    assert keys.ERROR not in done.data.tags
    assert checkpoint.find(run, 1) is None
    assert not outbox.of_run(run)
    expected = dict(evaluations(run, corpus))
    for name in DOMAINS:
        losses = {step: found.losses[name] for step, found in expected.items()}
        assert points(done, keys.VAL_LOSS + name) == losses
        errors = {step: found.standard_errors[name] for step, found in expected.items()}
        assert points(done, keys.VAL_LOSS_SE + name) == errors
    history = history_from_tags(done.data.tags)
    assert history is not None
    assert history.steps == tuple(expected)
    assert list(points(done, keys.TRAIN_LOSS)) == list(range(10, 301, 10))
    assert done.data.params["mixture/code"] == "0.3"


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_goes_on_in_the_same_run(
    corpus: Corpus, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned(corpus, training=LONG, engine=Engine(checkpoint_minutes=0))
    with training(run, corpus, store, tmp_path) as sweep:
        (child,) = multiprocessing.active_children()
        os.kill(int(child.pid or 0), signal.SIGKILL)
        sweep.result(240)
    assert (
        "worker-0 during run: killed by signal 9; started again (1 of 10)" in capsys.readouterr()[0]
    )
    (done,) = proxies()
    assert_whole(done, run, corpus)


@pytest.mark.long
@pytest.mark.slow
def test_training_goes_on_without_the_server_and_is_delivered_when_it_is_back(
    corpus: Corpus, store: str, tmp_path: Path
) -> None:
    assert store
    run = planned(corpus, training=LONG, engine=Engine(checkpoint_minutes=0), seed=11)
    port = free_port()
    with ExitStack() as until_the_end:
        with stores.http(tmp_path, port) as server:
            sweep = until_the_end.enter_context(training(run, corpus, server, tmp_path))
        wait_for_end(run)
        assert not sweep.done()
        with stores.http(tmp_path, port):
            sweep.result(240)
            (done,) = proxies()
            assert_whole(done, run, corpus)


@pytest.mark.slow
def test_a_model_that_goes_on_in_another_run_brings_its_points(corpus: Corpus, store: str) -> None:
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    run = planned(corpus, engine=Engine(checkpoint_minutes=0), seed=5)
    checkpoint.remove(run)
    first, second = (client.create_run("0").info.run_id for _ in range(2))

    evaluate, steps = Evaluator.evaluate, iter((5, 10, 19, 37))

    def impatient(self: Evaluator, engine: Any, rank: int, ranks: int) -> Evaluation:
        if next(steps) == 37:
            raise KeyboardInterrupt
        return evaluate(self, engine, rank, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", impatient)
        with pytest.raises(KeyboardInterrupt):
            train_and_log(run, corpus, first)
    saved = checkpoint.find(run, 1)
    assert saved is not None
    train_and_log(run, corpus, second, saved)
    found = client.get_run(second)
    for name in DOMAINS:
        losses = {step: e.losses[name] for step, e in evaluations(run, corpus)}
        assert points(found, keys.VAL_LOSS + name) == losses
    assert found.data.params["mixture/code"] == "0.3"


def test_what_was_drawn_is_logged(corpus: Corpus, store: str) -> None:
    mlflow.set_tracking_uri(store)
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    run = planned(corpus, data_share=0.05, seed=6)
    train_and_log(run, corpus, run_id)
    inputs = mlflow.get_run(run_id).inputs.dataset_inputs
    assert {json.loads(i.dataset.profile)["skipped"] for i in inputs} == {3}
    metrics = mlflow.get_run(run_id).data.metrics
    drawn = np.array([metrics[f"volume/trained_tokens/{name}"] for name in DOMAINS])
    expected = np.array(list(run.mixture.values())) * TRAINING.steps * TRAINING.tokens_per_step
    assert drawn.sum() == TRAINING.steps * TRAINING.tokens_per_step
    assert np.abs(drawn - expected).max() <= TRAINING.sequence_length
    windows = int((50_000 - 1) // TRAINING.sequence_length * 0.05)
    epochs = np.array([metrics[f"volume/epochs/{name}"] for name in DOMAINS])
    assert epochs == pytest.approx(drawn / (windows * TRAINING.sequence_length))


def test_divergence_ends_a_run_and_not_the_sweep(
    corpus: Corpus, store: str, tmp_path: Path
) -> None:
    bad = planned(corpus, size=Size(hidden_size=32, layers=2, heads=2, learning_rate=1e30))
    good = planned(corpus, name="good", engine=Engine(micro_batch_size=3))  # mended meanwhile
    job = Job(
        queue(store, tmp_path, bad), store, corpus.manifest, devices.Machines(devices.cores())
    )
    assert isinstance(job.work, Queue)
    Ledger(job.work.ledger_url, job.work.name).enqueue([bad, good])
    code, told = worked(job, bad)
    assert code == 0, told
    ends = [event for event in told if isinstance(event, Finished)]
    message = "training loss not finite at step 2: news, code, math"
    assert ends == [Finished("run", diverged=message), Finished("good")]
    runs = {run.info.run_name: run for run in proxies()}
    assert runs["run"].info.status == "FAILED"
    assert runs["run"].data.tags["error"] == message
    assert runs["good"].data.tags["complete"] == "true"


def worked(job: Job, run: Run) -> tuple[int, list[Event]]:
    """The exit code of a worker in this process, and what it told."""
    told: list[Event] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Courier(run.workspace).running():
        code = worker.main(job, 0, told.append)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return code, told


def test_a_model_that_does_not_fit_is_trained_with_half_the_micro_batch(
    corpus: Corpus, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(corpus, seed=21)
    work = queue(store, tmp_path, run)
    job = Job(work, store, corpus.manifest, devices.Machines(devices.cores()))
    Ledger(work.ledger_url, work.name).enqueue([run])
    step = Trainer._train_step

    def limited(self: Trainer, *batch: Any) -> None:
        if self._micro > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        step(self, *batch)

    monkeypatch.setattr(Trainer, "_train_step", limited)
    code, told = worked(job, run)
    assert code == 1
    assert [(e.name, e.reason) for e in told if isinstance(e, Crashed)] == [
        ("run", "out of memory")
    ]
    code, told = worked(job, run)
    assert code == 0
    notes = [event.text for event in told if isinstance(event, Note)]
    assert notes == ["run: memory ran out; now with a micro-batch of 4"]
    (done,) = [r for r in proxies() if keys.COMPLETE in r.data.tags]
    assert done.data.params["micro_batch_size"] == "4"
    assert not [r for r in proxies() if r.info.status == "RUNNING"]


def test_a_damaged_checkpoint_is_moved_aside(corpus: Corpus, store: str, tmp_path: Path) -> None:
    run = planned(corpus, seed=22)
    work = queue(store, tmp_path, run)
    job = Job(work, store, corpus.manifest, devices.Machines(devices.cores()))
    Ledger(work.ledger_url, work.name).enqueue([run])
    folder = run.workspace / checkpoint.CHECKPOINTS / fingerprint(run)
    folder.mkdir(parents=True)
    (folder / checkpoint.STATE).write_text('{"step": 10, "ra')
    code, told = worked(job, run)
    assert code == 1
    (crash,) = [event for event in told if isinstance(event, Crashed)]
    assert f"checkpoint {folder} cannot be loaded" in crash.reason
    (aside,) = folder.parent.glob(f"{folder.name}.damaged-*")
    assert crash.reason.endswith(f"it was moved to {aside}")
    assert worked(job, run)[0] == 0
    assert [r for r in proxies() if keys.COMPLETE in r.data.tags]


def test_a_run_that_fails_again_and_again_is_given_up(
    corpus: Corpus, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = planned(corpus, seed=23, name="bad"), planned(corpus, seed=24, name="good")
    work = queue(store, tmp_path, bad)
    job = Job(work, store, corpus.manifest, devices.Machines(devices.cores()))
    book = Ledger(work.ledger_url, work.name)
    book.enqueue([bad, good])
    step = Trainer._train_step

    def failing(self: Trainer, *batch: Any) -> None:
        if self.run.name == "bad":
            raise RuntimeError("NCCL error: unhandled system error")
        step(self, *batch)

    monkeypatch.setattr(Trainer, "_train_step", failing)
    codes = [worked(job, bad)[0] for _ in range(4)]
    assert codes == [1, 1, 1, 0]
    reason = "RuntimeError: NCCL error: unhandled system error"
    assert book.given_up([bad, good]) == {"bad": reason}
    runs = {r.info.run_name: r for r in proxies() if keys.ERROR not in r.data.tags}
    assert list(runs) == ["good"]
    assert not [r for r in proxies() if r.info.status == "RUNNING"]
    book.enqueue([bad])  # a new start tries anew
    assert [run.name for run in book.open_runs()] == ["bad"]


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_on_the_machines_of_a_hostfile(corpus: Corpus, store: str, tmp_path: Path) -> None:
    """With programs in place of ssh and pdsh that stay on this machine."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, script in (("ssh", SSH), ("pdsh", PDSH)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=1  # the first\ntwo slots=1\n")
    bad = planned(corpus, size=Size(hidden_size=32, layers=2, heads=2, learning_rate=1e30))
    runs = [bad, planned(corpus, seed=7), planned(corpus, seed=8, name="last")]
    machines = devices.Machines(1, launcher.slots(hosts), hosts)
    assert machines.ranks == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
        pool.train(runs, corpus, queue(store, tmp_path, bad), machines)
    last, first, failed = proxies()
    assert failed.info.status == "FAILED"
    for run, done in ((runs[1], first), (runs[2], last)):
        assert done.data.params["processes"] == "2"
        history = history_from_tags(done.data.tags)
        assert history is not None
        alone = evaluations(run, corpus)[-1][1].losses
        assert dict(zip(history.domains, history.losses[-1], strict=True)) == pytest.approx(
            alone, abs=1e-6
        )
    assert not list(corpus.manifest.parent.glob("job-*"))

    hosts.write_text("one slots=1\ntwo\n")
    with pytest.raises(InputError, match=r"hosts, line 2: 'two' is not 'host slots=n'"):
        launcher.slots(hosts)


SSH = """#!/bin/sh
# ssh [options] host command…: only asked for the first host's addresses
case "$*" in *"hostname -I"*) echo 127.0.0.1 ;; esac
"""


PDSH = """#!/bin/bash
# pdsh -S -f n -w one,two command: %n is the number of the host
while [ "$1" != "-w" ]; do shift; done
IFS=, read -ra hosts <<< "$2"
shift 2
for i in "${!hosts[@]}"; do bash -c "${*//%n/$i}" & done
wait
"""


def proxies() -> list[MlflowRun]:
    return mlflow.MlflowClient().search_runs(["0"], "tags.stage = 'proxy'")

"""A worker: claims runs from the ledger and trains them.

The pool starts it once per sweep, so libraries are imported once and not per run. What it logs goes
through the outbox of each run, so that it never waits for the tracking server.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.exceptions import MlflowException

from training import run_log
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.delivery import outbox
from training.delivery.outbox import Outbox
from training.engine import checkpoint
from training.engine.checkpoint import Checkpoint, DamagedError
from training.engine.devices import use_device
from training.record import attempts, layout, secrets, stores
from training.record.errors import DivergedError, InputError, first_line
from training.record.quiet import quiet
from training.run import Run, fingerprint
from training.workers import broadcast, memory
from training.workers.ledger import Claim, Ledger, Trained
from training.workers.messages import (
    Crashed,
    Failed,
    Finished,
    Job,
    Note,
    Queue,
    SingleRun,
    Starting,
    Undelivered,
    Waiting,
)
from training.workers.one_run import Emit, train_and_log
from training.workers.patience import Patience
from training.workers.signals import ignore_signals, interrupt_on_signals, is_interrupted

AWAY_SECONDS = 60  # without asking a tracking server again that did not answer


def main(job: Job, index: int, emit: Emit) -> int:
    """The worker process: train until no run is left; returns the exit code.

    Errors are sent as events. `emit` raises KeyboardInterrupt when the parent is gone.
    """
    quiet()
    interrupt_on_signals()
    try:
        secrets.remember(job.tracking_uri)
        emit(Starting("importing libraries"))
        use_device(index, job.machines.threads)
        mlflow.set_tracking_uri(job.tracking_uri)
        _work(job, index, emit)
    except KeyboardInterrupt:
        return 1
    except _RunError:
        return 1  # an event has told
    except (InputError, DivergedError) as error:
        emit(Failed(error))
        return 1
    except BaseException:
        emit(Failed(RuntimeError(secrets.masked(traceback.format_exc()))))
        return 1
    finally:
        ignore_signals()
    return 0


class _RunError(Exception):
    """A run's training failed."""


def _work(job: Job, index: int, emit: Emit) -> None:
    from training.engine import trainer as trainers

    trainers.silence_libraries()
    emit(Starting("waiting for its processes to join"))
    trainers.connect()
    corpus = corpora.load(job.corpus)
    emit(Starting())
    match job.work:
        case SingleRun():
            _train_single(job.work, job.machines.ranks, corpus, emit)
        case Queue():
            token = f"{job.token}/{index}"
            _work_through(job.work, job.machines.ranks, corpus, token, emit)
    broadcast.send(None)


def _train_single(work: SingleRun, processes: int, corpus: Corpus, emit: Emit) -> None:
    """Train one run into an existing MLflow run, which replaces those of earlier attempts."""
    run, patience = work.run, _patience(work.run.engine.patience_minutes, emit)
    with checkpoint.exclusive(run), _crash_reported(run, emit):
        boxes = {box.header.run_id: box for box in outbox.of_run(run)}
        box = boxes.pop(work.run_id, None)
        if box and box.end():
            return  # trained by a worker that died at its end
        saved = checkpoint.find(run, processes)
        for run_id, earlier in boxes.items():
            if run_id is not None and not earlier.end():
                earlier.abandon("its process died", successor=work.run_id)
        if box is None:
            box = Outbox.create(run, work.experiment_id, run_id=work.run_id)
        train_and_log(run, corpus, Outbox(box.folder, patience.for_space), saved, emit)


def _work_through(queue: Queue, processes: int, corpus: Corpus, token: str, emit: Emit) -> None:
    """Train the ledger's runs, each logged to its own MLflow run."""
    patience = _patience(queue.engine.patience_minutes, emit)
    finished = _Finished(queue.experiment_id)

    def train(claim: Claim) -> Trained:
        engine = queue.engine
        if memory.NO_MEMORY in claim.deaths:
            engine = memory.halved(engine, claim.run.training, processes)
            size = engine.micro_batch_size
            emit(Note(f"{claim.run.name}: memory ran out; now with a micro-batch of {size}"))
        current = {"workspace": queue.workspace, "engine": engine}
        run = claim.run.model_copy(update=current)
        _wait_for_room(run, patience)
        with checkpoint.exclusive(run), _crash_reported(run, emit):
            boxes = outbox.of_run(run, queue.experiment_id)
            for box in boxes:
                if (end := box.end()) and end.trained:
                    emit(Finished(run.name, end.diverged))
                    return Trained(end.loss, box.is_delivered)
            if finished.has(run):
                emit(Finished(run.name))
                return Trained(0.0)
            saved = checkpoint.find(run, processes)
            box = _box(run, queue, boxes, saved, patience)
            try:
                with box.open():
                    loss = train_and_log(run, corpus, box, saved, emit, claim)
            except DivergedError as error:
                emit(Finished(run.name, diverged=str(error)))
                return Trained(None, box.is_delivered)
            return Trained(loss, box.is_delivered)

    def waiting(others: int, undelivered: int) -> None:
        if others:
            emit(Waiting(f"{layout.count(others, 'run')} of other workers"))
        else:
            emit(Undelivered(undelivered))

    book = Ledger(queue.ledger_url, queue.name, patience)
    book.work(train, waiting, token)


def _patience(minutes: float, emit: Emit) -> Patience:
    return Patience(minutes, lambda what: emit(Waiting(what)))


def _wait_for_room(run: Run, patience: Patience) -> None:
    """Begin no new run while too much waits for the tracking server."""

    def look() -> None:
        if outbox.is_full(run.workspace):
            raise _NoRoomError(f"{outbox.folder(run.workspace)} holds all that it may")

    patience("the tracking server", look, lambda error: isinstance(error, _NoRoomError))


class _NoRoomError(Exception):
    """Too much waits for the tracking server."""


class _Finished:
    """Which runs the tracking server has already; not known, and so none, while it is away.

    The ledger gives a run to one worker. If it is trained twice nevertheless, the first one that
    the server has counts.
    """

    def __init__(self, experiment_id: str) -> None:
        self._experiment_id = experiment_id
        self._ask_again = 0.0  # by the monotonic clock

    def has(self, run: Run) -> bool:
        if time.monotonic() < self._ask_again:
            return False
        with stores.short_timeouts():
            try:
                key = fingerprint(run)
                return bool(attempts.finished_ids(self._experiment_id, run.stage, key))
            except MlflowException:
                self._ask_again = time.monotonic() + AWAY_SECONDS
                return False


def _box(
    run: Run, queue: Queue, boxes: list[Outbox], saved: Checkpoint | None, patience: Patience
) -> Outbox:
    """The outbox that the checkpoint was saved with, if it can be resumed, else a new one."""
    attempt = saved.log_state.get(run_log.ATTEMPT) if saved else None
    resumed = None
    for box in boxes:
        if box.end() or box.header.run_id:
            continue
        if box.name == attempt:
            resumed = Outbox(box.folder, patience.for_space)
        else:
            box.abandon("its worker died; trained again")
    return resumed or Outbox.create(
        run,
        queue.experiment_id,
        parent_run_id=queue.parent_run_id,
        patience=patience.for_space,
    )


@contextmanager
def _crash_reported(run: Run, emit: Emit) -> Iterator[None]:
    """Report what another attempt at the run may mend, and raise _RunError."""
    try:
        yield
    except (DivergedError, checkpoint.BusyError):
        raise
    except DamagedError as error:
        place = error.set_aside()
        emit(Crashed(run.name, f"{first_line(error)}; it was moved to {place}", ""))
        raise _RunError(str(error)) from error
    except InputError:
        raise
    except Exception as error:
        if is_interrupted():  # another process of the model was first to end
            raise KeyboardInterrupt from error
        reason = memory.reason(error) or f"{type(error).__name__}: {first_line(error)}"
        reason = secrets.masked(reason)
        emit(Crashed(run.name, reason, secrets.masked(traceback.format_exc())))
        raise _RunError(reason) from error

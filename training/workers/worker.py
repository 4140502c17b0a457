"""A worker: claims runs from the ledger, trains them and logs them to MLflow.

The pool starts it once per sweep, so libraries are imported once and not per run.
"""

import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import optuna
from mlflow.exceptions import MlflowException

from training import run_log
from training.data import corpus as corpora
from training.data import tasks
from training.data.corpus import Corpus
from training.engine import checkpoint
from training.engine.checkpoint import Checkpoint
from training.engine.devices import use_device
from training.record import keys, secrets
from training.record.errors import DivergedError, InputError, first_line
from training.record.mlflow_runs import log_params, open_run
from training.record.quiet import quiet
from training.run import Run, fingerprint
from training.workers import broadcast
from training.workers.ledger import Ledger
from training.workers.messages import (
    Event,
    Failed,
    Finished,
    Job,
    Progress,
    Queue,
    SingleRun,
    Started,
    Starting,
    Waiting,
)
from training.workers.signals import ignore_signals, interrupt_on_signals

if TYPE_CHECKING:
    from training.engine import trainer as trainers  # slow to import: torch

TRAIN_POINTS = 500  # logged training losses per run, about
REPORT_SECONDS = 0.5

Emit = Callable[[Event], None]


def main(job: Job, index: int, emit: Emit) -> int:
    """The worker process: train until no run is left; returns the exit code.

    Errors are sent as events. `emit` raises KeyboardInterrupt when the parent is gone.
    """
    quiet()
    interrupt_on_signals()
    try:
        secrets.remember(job.tracking_uri)
        emit(Starting(index, "importing libraries"))
        use_device(index, job.machines.threads)
        mlflow.set_tracking_uri(job.tracking_uri)
        _work(job, index, emit)
    except KeyboardInterrupt:
        return 1
    except (InputError, DivergedError) as error:
        emit(Failed(error))
        return 1
    except MlflowException as error:
        emit(
            Failed(
                InputError(
                    f"MLflow: {first_line(error)}; run the command again to resume once it answers"
                )
            )
        )
        return 1
    except BaseException:
        emit(Failed(RuntimeError(secrets.masked(traceback.format_exc()))))
        return 1
    finally:
        ignore_signals()
    return 0


def _work(job: Job, index: int, emit: Emit) -> None:
    from training.engine import trainer as trainers

    trainers.silence_libraries()
    emit(Starting(index, "waiting for its processes to join"))
    trainers.connect()
    corpus = corpora.load(job.corpus)
    emit(Starting(index))
    match job.work:
        case SingleRun(run, run_id):
            with checkpoint.exclusive(run):
                saved = checkpoint.find(run, job.machines.ranks)
                if saved is not None and saved.log_state:
                    run_log.hand_over(saved.log_state["run_id"], run_id)
                train_and_log(run, corpus, run_id, saved, emit)
        case Queue() as queue:
            _work_through(queue, job.machines.ranks, corpus, emit)
    broadcast.send(None)


def _work_through(queue: Queue, processes: int, corpus: Corpus, emit: Emit) -> None:
    """Train the ledger's runs, each logged to its own MLflow run."""

    def train(enqueued: Run) -> float:
        current = {"workspace": queue.workspace, "engine": queue.engine}
        run = enqueued.model_copy(update=current)
        if run_log.finished_ids(queue.experiment_id, run.stage, fingerprint(run)):
            emit(Finished(run.name))
            return 0.0
        try:
            with checkpoint.exclusive(run):
                saved = checkpoint.find(run, processes)
                with _open(run, queue, saved) as active:
                    return train_and_log(run, corpus, active.info.run_id, saved, emit)
        except DivergedError as error:
            emit(Finished(run.name, diverged=str(error)))
            raise optuna.TrialPruned(str(error)) from error

    Ledger(queue.ledger_url, queue.name).work(train, lambda n: emit(Waiting(n)))


def _open(
    run: Run, queue: Queue, saved: Checkpoint | None
) -> AbstractContextManager[mlflow.ActiveRun]:
    """The MLflow run of the checkpoint if it can be resumed, else a new one."""
    started = None
    if saved is not None and saved.log_state:
        started = run_log.unfinished(saved.log_state["run_id"], queue.experiment_id)
    run_log.close_abandoned(queue.experiment_id, run, except_id=started)
    if started is not None:
        return open_run(run_id=started)
    return open_run(
        experiment_id=queue.experiment_id, run_name=run.name, parent_run_id=queue.parent_run_id
    )


def train_and_log(
    run: Run, corpus: Corpus, run_id: str, saved: Checkpoint | None, emit: Emit
) -> float:
    """Train one model and log it to an MLflow run; returns the final mean validation loss.

    Raises DivergedError if a loss is not finite, and logs that too.
    """
    from training.engine import trainer as trainers

    broadcast.send((run, saved))
    trainer = trainers.Trainer(run, corpus, saved)
    log = run_log.RunLog(run_id, run, corpus, saved.log_state or None if saved else None)
    if not log.resumed:
        log_params(run_id, _params(run, corpus, trainer))
    steps = run.training.steps
    flops_per_step = run.flops(corpus.vocab_size) // steps
    every = trainers.REPORT_EVERY * -(-steps // (trainers.REPORT_EVERY * TRAIN_POINTS))
    losses: list[float] = []
    speeds: list[float] = []
    reported_step, reported_at = saved.step if saved else 0, time.monotonic()
    emit(Started(run.name))
    emit(Progress(reported_step * flops_per_step, 0))
    try:
        for report in trainer.reports(log.state):
            if report.step:
                losses.append(report.train_loss)
                speeds.append(report.tokens_per_second)
            if losses and (report.step % every == 0 or report.step == steps):
                log.training(report.step, statistics.fmean(losses), statistics.median(speeds))
                losses, speeds = [], []
            if report.evaluation:
                log.evaluation(report.step, report.evaluation, trainer.sampler)
            if time.monotonic() - reported_at > REPORT_SECONDS or report.step == steps:
                done = report.step - reported_step
                emit(Progress(done * flops_per_step, done * run.training.tokens_per_step))
                reported_step, reported_at = report.step, time.monotonic()
    except DivergedError as error:
        checkpoint.remove(run)
        log.diverged(str(error))
        raise
    if run.engine.save_models:
        _log_model(trainer, corpus, run_id)
    if run.keep_state:
        trainer.keep_state()
    if run.later:
        log.schedule(trainer.sampler)
    trainer.close()
    loss = log.complete()
    checkpoint.remove(run)
    emit(Finished(run.name))
    return loss


def _params(run: Run, corpus: Corpus, trainer: "trainers.Trainer") -> dict[str, object]:
    """The params of the MLflow run."""
    return {
        **keys.with_prefix(keys.MIXTURE, run.mean_mixture()),
        **(keys.phases(run.phases, run.training.tokens_per_step) if run.later else {}),
        **({keys.BASE: run.base.source, keys.BASE_DIGEST: run.base.digest} if run.base else {}),
        keys.N_PARAMS: trainer.n_params,
        "n_embedding_params": trainer.n_embedding,
        keys.TOKENS_PER_STEP: run.training.tokens_per_step,
        keys.SEED: run.seed,
        keys.SIZE: run.size_name,
        **run.size.model_dump(exclude_none=True),
        **run.training.model_dump(exclude={"steps"}),
        **run.engine.model_dump(exclude={"start_minutes"}),
        "max_steps": run.training.steps,
        "learning_rate": trainer.learning_rate,
        "optimizer": "AdamW",
        "processes": trainer.ranks,
        "data_share": run.data_share,
        "vocab_size": corpus.vocab_size,
        "validation_tokens": run.validation_tokens,
        "corpus_digest": run.corpus_digest,
        **_params_of_tasks(run, corpus),
    }


def _params_of_tasks(run: Run, corpus: Corpus) -> dict[str, object]:
    """What a fit needs to know of the tasks with choices."""
    tokens, length = run.validation_tokens, run.training.sequence_length
    answers = {
        name: tasks.evaluated(task, tokens, length)
        for name, task in corpus.tasks.items()
        if task.chance is not None
    }
    return {
        **{keys.CHANCE + name: asked.chance for name, asked in answers.items()},
        **{keys.QUESTIONS + name: asked.questions for name, asked in answers.items()},
    }


def _log_model(trainer: "trainers.Trainer", corpus: Corpus, run_id: str) -> None:
    """Log the trained model and its tokenizer as the artifact `model`, for `from_pretrained`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        shutil.copytree(corpus.tokenizer, folder)
        trainer.save_model(folder)
        mlflow.MlflowClient().log_artifacts(run_id, str(folder), "model")

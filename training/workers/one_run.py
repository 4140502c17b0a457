"""Train one model and log it through its outbox."""

import shutil
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from training import run_log
from training.data import tasks
from training.data.corpus import Corpus
from training.delivery.outbox import Outbox
from training.engine import checkpoint
from training.engine.checkpoint import Checkpoint
from training.record import keys
from training.record.errors import DivergedError
from training.run import Run
from training.workers import broadcast
from training.workers.ledger import Claim
from training.workers.messages import Event, Finished, Progress, Started
from training.workers.signals import deferred

if TYPE_CHECKING:
    from training.engine import trainer as trainers  # slow to import: torch

TRAIN_POINTS = 500  # logged training losses per run, about
REPORT_SECONDS = 0.5

Emit = Callable[[Event], None]


def train_and_log(
    run: Run,
    corpus: Corpus,
    box: Outbox,
    saved: Checkpoint | None,
    emit: Emit,
    claim: Claim | None = None,
) -> float:
    """Train one model and log it through an outbox; returns the final mean validation loss.

    Raises DivergedError if a loss is not finite, and logs that too.
    """
    from training.engine import trainer as trainers

    progress = _ProgressOfRun(run, corpus, saved.step if saved else 0, emit, claim)
    broadcast.send((run, saved))
    trainer = trainers.Trainer(run, corpus, saved)
    log = run_log.RunLog(box, run, corpus, saved.log_state or None if saved else None)
    if log.is_new:
        box.params(_params(run, corpus, trainer))
    steps = run.training.steps
    every = trainers.REPORT_EVERY * -(-steps // (trainers.REPORT_EVERY * TRAIN_POINTS))
    losses: list[float] = []
    speeds: list[float] = []
    try:
        with deferred() as is_interrupted:
            for report in trainer.reports(log.state, is_interrupted):
                if report.step:
                    losses.append(report.train_loss)
                    speeds.append(report.tokens_per_second)
                if losses and (report.step % every == 0 or report.step == steps):
                    log.training(report.step, statistics.fmean(losses), statistics.median(speeds))
                    losses, speeds = [], []
                if report.evaluation:
                    log.evaluation(report.step, report.evaluation, trainer.sampler)
                progress.report(report)
    except DivergedError as error:
        checkpoint.remove(run)
        log.diverged(str(error))
        raise
    if run.engine.save_models:
        _log_model(trainer, corpus, box)
    if run.keep_state:
        trainer.keep_state()
    if run.later:
        log.schedule(trainer.sampler)
    trainer.close()
    loss = log.complete()
    checkpoint.remove(run)
    emit(Finished(run.name))
    return loss


class _ProgressOfRun:
    """Tells the parent, and the ledger by its claim, how far a run is."""

    def __init__(
        self, run: Run, corpus: Corpus, step: int, emit: Emit, claim: Claim | None
    ) -> None:
        self._training, self._emit, self._claim = run.training, emit, claim
        self._flops_per_step = run.flops(corpus.vocab_size) // run.training.steps
        self._step, self._at = step, time.monotonic()
        emit(Started(run.name))
        emit(Progress(step * self._flops_per_step, 0))

    def report(self, report: "trainers.Report") -> None:
        if self._claim is not None:
            speed = report.tokens_per_second if report.step else 0.0
            self._claim.progress.update(step=report.step, tokens_per_second=speed)
        if time.monotonic() - self._at > REPORT_SECONDS or report.step == self._training.steps:
            done = report.step - self._step
            tokens = done * self._training.tokens_per_step
            self._emit(Progress(done * self._flops_per_step, tokens))
            self._step, self._at = report.step, time.monotonic()


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
        **run.engine.model_dump(exclude={"start_minutes", "patience_minutes", "stall_minutes"}),
        "max_steps": run.training.steps,
        "learning_rate": trainer.learning_rate,
        "optimizer": "AdamW",
        "processes": trainer.ranks,
        "data_share": run.data_share,
        "vocab_size": corpus.vocab_size,
        "validation_tokens": run.validation_tokens,
        "corpus_digest": run.corpus_digest,
        **keys.with_prefix(keys.UNIQUE_TOKENS, trainer.sampler.unique_tokens()),
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


def _log_model(trainer: "trainers.Trainer", corpus: Corpus, box: Outbox) -> None:
    """Log the trained model and its tokenizer as the artifact `model`, for `from_pretrained`."""
    with box.artifact("model") as folder:
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that died here
        shutil.copytree(corpus.tokenizer, folder)
        trainer.save_model(folder)

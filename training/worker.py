"""A worker: claims runs from the ledger, trains them and logs them to MLflow.

Started once a sweep by `training.crew`, so that libraries are imported once and not per run.
"""

import os
import shutil
import statistics
import sysconfig
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue

import mlflow
import optuna

from training import corpus as corpora
from training import record, tracking
from training.corpus import Corpus
from training.errors import DivergedError, InputError
from training.events import Event, Failed, Finished, Job, Progress, Started, Waiting
from training.ledger import Ledger
from training.settings import Run
from training.signals import ignore_signals, interrupt_on_signals

LOG_EVERY = 10  # steps between training-loss points
REPORT_SECONDS = 0.5


def main(job: Job, index: int, events: "Queue[Event]") -> None:
    """The worker process: train until the ledger is empty; every end is told as an event."""
    interrupt_on_signals()
    try:
        use_device(index, job.threads)
        mlflow.set_tracking_uri(job.tracking_uri)
        crew = os.getppid()

        def progress(event: Event) -> None:
            if os.getppid() != crew:
                raise KeyboardInterrupt  # nobody is left to work for
            events.put(event)

        _work(job, progress)
    except KeyboardInterrupt:
        pass
    except InputError as error:
        events.put(Failed(str(error), users_mistake=True))
    except BaseException:
        events.put(Failed(traceback.format_exc(), users_mistake=False))
    finally:
        ignore_signals()


def _work(job: Job, progress: Callable[[Event], None]) -> None:
    corpus = corpora.load(job.corpus)

    def train(run: Run) -> float:
        if tracking.fingerprint(run) in tracking.settled(job.experiment_id):
            progress(Finished(run.name))
            return 0.0
        tracking.close_abandoned(job.experiment_id, run)
        try:
            with tracking.open_run(
                experiment_id=job.experiment_id, run_name=run.name, parent_run_id=job.parent_run_id
            ) as active:
                return train_and_log(run, corpus, active.info.run_id, progress)
        except DivergedError as error:
            progress(Finished(run.name, diverged=str(error)))
            raise optuna.TrialPruned(str(error)) from error

    Ledger(job.ledger_url, job.ledger_name).work(train, lambda n: progress(Waiting(n)))


def train_and_log(
    run: Run, corpus: Corpus, run_id: str, progress: Callable[[Event], None]
) -> float:
    """Train one model into an MLflow run; returns the last mean validation loss.

    Raises DivergedError when the loss stops being finite; the run says so.
    """
    from training import loop

    loop.quiet()
    log = tracking.RunLog(run_id, run, corpus)
    trainer = loop.Trainer(run, corpus)
    tracking.log_params(
        run_id,
        {
            **record.with_prefix(record.MIXTURE, run.mixture),
            record.N_PARAMS: trainer.n_params,
            "n_embedding_params": trainer.n_embedding,
            record.TOKENS_PER_STEP: run.training.tokens_per_step,
            record.SEED: run.seed,
            record.SIZE: run.size_name,
            **run.size.model_dump(),
            **run.training.model_dump(exclude={"steps"}),
            "max_steps": run.training.steps,
            "learning_rate": trainer.learning_rate,
            "optimizer": "AdamW",
            "vocab_size": corpus.vocab_size,
            "validation_tokens": run.validation_tokens,
            "corpus_digest": run.corpus_digest,
        },
    )
    progress(Started(run.name))
    flops_per_step = run.flops(corpus.vocab_size) // run.training.steps
    losses: dict[str, float] = {}
    speeds: list[float] = []
    told_step, told_at = 0, time.monotonic()
    try:
        for report in trainer.reports():
            speeds.append(report.tokens_per_second)
            if report.step % LOG_EVERY == 0:
                log.metric(record.TRAIN_LOSS, report.train_loss, report.step)
            if report.val_losses:
                losses = report.val_losses
                log.metric(record.TOKENS_PER_SECOND, statistics.median(speeds), report.step)
                log.evaluation(report.step, report.tokens, losses)
                speeds.clear()
            if time.monotonic() - told_at > REPORT_SECONDS or report.step == run.training.steps:
                steps = report.step - told_step
                progress(Progress(steps * flops_per_step, steps * run.training.tokens_per_step))
                told_step, told_at = report.step, time.monotonic()
    except DivergedError as error:
        log.diverged(str(error))
        raise
    for name, epochs in zip(corpus.domains, trainer.sampler.epochs(), strict=True):
        log.metric(f"epochs/{name}", float(epochs), run.training.steps)
    log.flush()
    log.complete()
    progress(Finished(run.name))
    return statistics.fmean(losses.values())


def all_threads() -> int:
    """One thread a core, for a process that has the machine to itself."""
    return os.cpu_count() or 1


def use_device(index: int, threads: int) -> None:
    """Take one GPU where there are any, else check what DeepSpeed needs on a CPU."""
    scripts = sysconfig.get_path("scripts")  # an unactivated environment's ninja
    os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    import torch  # slow

    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(index % torch.cuda.device_count())
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(threads)
    compiler = os.environ.get("CXX") or "c++"
    if not (shutil.which(compiler) or shutil.which("g++")):
        raise InputError(
            f"no C++ compiler ({compiler} or g++) on the PATH: DeepSpeed compiles a kernel on a "
            "CPU at first use; install one (Debian, Ubuntu: apt-get install g++) or set CXX"
        )
    if not shutil.which("ninja"):
        raise InputError("ninja is not on the PATH; install it with: pip install ninja")

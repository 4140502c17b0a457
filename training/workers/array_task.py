"""What each task of a Slurm job array runs: one worker of the sweep's ledger.

Started by `array_task.sbatch`. The job file holds no address of a store: they come in the
environment.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from training.config import Engine
from training.data import corpus as corpora
from training.engine.devices import Machines, visible_gpus
from training.record import secrets
from training.record.errors import InputError
from training.record.quiet import log_to_terminal, quiet
from training.workers import pool
from training.workers.ledger import Ledger
from training.workers.messages import Job, Queue
from training.workers.signals import interrupt_on_signals

LEDGER = "MIXTURE_LEDGER"  # environment variable: the ledger's URL
TRACKING = "MLFLOW_TRACKING_URI"
INTERRUPTED = 75  # exit code; `array_task.sbatch` reads it


def write_job(path: Path, queue: Queue, corpus: Path, ranks: int) -> None:
    """Write a job file, in one step; tasks that start later read the new one."""
    job = {
        "queue": queue.name,
        "experiment_id": queue.experiment_id,
        "parent_run_id": queue.parent_run_id,
        "workspace": str(queue.workspace),
        "engine": queue.engine.model_dump(mode="json"),
        "corpus": str(corpus),
        "ranks": ranks,
    }
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.touch(mode=0o600)
    scratch.write_text(json.dumps(job, indent=1))
    scratch.replace(path)


def read_job(path: Path) -> Job:
    """The job of a file and of this environment, for one worker."""
    if LEDGER not in os.environ or TRACKING not in os.environ:
        raise InputError(
            f"the environment has no {LEDGER} or {TRACKING}: Slurm must hand it over, which is "
            "sbatch's --export=ALL"
        )
    try:
        job: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): the workspace must be on a disk that all "
            "nodes share"
        ) from error
    queue = Queue(
        ledger_url=os.environ.pop(LEDGER),
        name=job["queue"],
        experiment_id=job["experiment_id"],
        parent_run_id=job["parent_run_id"],
        workspace=Path(job["workspace"]),
        engine=Engine.model_validate(job["engine"]),
    )
    ranks = int(job["ranks"])
    return Job(queue, os.environ[TRACKING], Path(job["corpus"]), Machines(1, ranks))


def main(job_file: str) -> None:
    """Work until no run is left; ends with `INTERRUPTED` at SIGTERM, with one line for an error."""
    secrets.guard()
    quiet()
    log_to_terminal()
    interrupt_on_signals()
    try:
        job = read_job(Path(job_file))
        secrets.remember(job.work.ledger_url if isinstance(job.work, Queue) else None)
        gpus = len(visible_gpus())
        if gpus and job.machines.ranks > gpus:
            raise InputError(
                f"ranks: {job.machines.ranks} processes need as many GPUs; Slurm gave this task "
                f"{gpus}: ask for more in sbatch, such as --gres=gpu:{job.machines.ranks}"
            )
        serve(job)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except InputError as error:
        sys.exit(str(error))


def serve(job: Job) -> None:
    """Stand-in for `pool.serve`, to be replaced by it."""
    import mlflow

    assert isinstance(job.work, Queue)
    mlflow.set_tracking_uri(job.tracking_uri)
    book = Ledger(job.work.ledger_url, job.work.name)
    try:
        pool.train(book.open_runs(), corpora.load(job.corpus), job.work, job.machines)
    except KeyboardInterrupt:
        book.enqueue(book.open_runs())  # what was interrupted, for the other tasks
        raise


if __name__ == "__main__":
    main(sys.argv[1])

"""What each task of a Slurm job array runs: one worker of the sweep's ledger.

Started by `array_task.sbatch`. The job file holds no address of a store: they come in the
environment.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import mlflow

from training.config import Engine
from training.data import corpus as corpora
from training.engine.devices import Machines, visible_gpus
from training.record import secrets
from training.record.errors import InputError
from training.record.quiet import log_to_terminal, quiet
from training.workers import pool, step_tasks
from training.workers.ledger import Ledger
from training.workers.messages import Job, Queue
from training.workers.patience import Patience
from training.workers.signals import interrupt_on_signals

logger = logging.getLogger("training")

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


def read_job(path: Path) -> tuple[Queue, Job]:
    """The queue and the job of a file and of this environment, for one worker."""
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
    machines = Machines(1, int(job["ranks"]))
    return queue, Job(queue, os.environ[TRACKING], Path(job["corpus"]), machines)


def main(job_file: str) -> None:
    """Work until no run is left; ends with `INTERRUPTED` at SIGTERM, with one line for an error."""
    secrets.guard()
    quiet()
    log_to_terminal()
    interrupt_on_signals()
    try:
        queue, job = read_job(Path(job_file))
        secrets.remember(queue.ledger_url)
        gpus = len(visible_gpus())
        if gpus and job.machines.ranks > (step_tasks.of_several_nodes() or gpus):
            raise InputError(
                f"ranks: {job.machines.ranks} processes need as many GPUs; Slurm gave this task "
                f"{gpus}: ask for more in sbatch, such as --gres=gpu:{job.machines.ranks}"
            )
        serve(queue, job)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except InputError as error:
        sys.exit(str(error))


def serve(queue: Queue, job: Job) -> None:
    """Train the runs that are left by one worker, with those of the other tasks."""
    mlflow.set_tracking_uri(job.tracking_uri)
    patience = Patience(queue.engine.patience_minutes, logger.warning)
    if runs := Ledger(queue.ledger_url, queue.name, patience).open_runs():
        pool.serve(runs, job, corpora.load(job.corpus).vocab_size)


if __name__ == "__main__":
    main(sys.argv[1])

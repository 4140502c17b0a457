"""The parent of the workers: starts them, shows their progress, and ends them."""

import logging
import multiprocessing
import queue
import sys
import time
from collections.abc import Sequence
from typing import Any

import mlflow
from tqdm import tqdm

from training.data.corpus import Corpus
from training.engine import kernels
from training.engine.devices import Machines
from training.record import layout, secrets
from training.record.errors import InputError
from training.run import Run
from training.workers import worker
from training.workers.launcher import LaunchedWorker
from training.workers.ledger import Ledger
from training.workers.messages import (
    Alive,
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
from training.workers.signals import END_SECONDS, end_with_parent, terminal_blocked

logger = logging.getLogger("training")

POLL_SECONDS = 0.5
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # refresh of the progress line, on a terminal and in a log
QUIET_SECONDS = 20  # without an event before the progress line says so
NOTICE_SECONDS = 3  # of waiting for workers to end before a notice


def train(runs: Sequence[Run], corpus: Corpus, work: Queue | SingleRun, machines: Machines) -> None:
    """Train every run that is not trained yet.

    The run of a killed worker passes to the others. Raises InputError for a user's mistake and for
    a worker that is not ready in time, DivergedError if the work is a single run, and RuntimeError
    with the worker's traceback for anything else.
    """
    if isinstance(work, Queue):
        Ledger(work.ledger_url, work.name).enqueue(runs)
    kernels.build_for(machines)
    job = Job(work, mlflow.get_tracking_uri(), corpus.manifest, machines)
    indices = range(min(machines.workers, len(runs)))
    if machines.ranks == 1 and machines.hostfile is None:
        context = multiprocessing.get_context("spawn")
        events: Any = context.Queue()
        workers: list[Any] = [
            context.Process(target=_work, args=(job, i, events), name=f"worker-{i}")
            for i in indices
        ]
    else:
        events = queue.Queue()
        workers = [LaunchedWorker(job, i, events) for i in indices]
    engine = work.engine if isinstance(work, Queue) else work.run.engine
    flops = sum(run.flops(corpus.vocab_size) for run in runs)
    try:
        with terminal_blocked():
            for process in workers:
                process.start()
        _follow(workers, events, len(runs), flops, engine.start_minutes)
    finally:
        _end(workers)


def _work(job: Job, index: int, events: Any) -> None:
    """The child process of a worker with one process."""
    secrets.guard()
    end_with_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def emit(event: Event) -> None:
        if not parent.is_alive():
            raise KeyboardInterrupt  # nobody is left to work for
        events.put(event)

    sys.exit(worker.main(job, index, emit))


def _end(workers: Sequence[Any]) -> None:
    """End every worker; each closes its run first, if it can."""
    for process in workers:
        if process.pid is not None:
            process.terminate()
    started = time.monotonic()
    for seconds, message in ((NOTICE_SECONDS, ""), (END_SECONDS, "waiting for workers to end")):
        if message and any(process.is_alive() for process in workers if process.pid is not None):
            logger.warning(f"{message}, {END_SECONDS} seconds at most")
        for process in workers:
            if process.pid is not None:
                process.join(max(0.0, started + seconds - time.monotonic()))
    for process in workers:
        if process.pid is not None:
            process.kill()
            process.join(NOTICE_SECONDS)


def _follow(
    workers: Sequence[Any], events: Any, runs: int, flops: int, start_minutes: float
) -> None:
    """Show the workers' events until all have ended; raises a failed worker's error."""
    done = tokens = 0
    starting = dict.fromkeys(range(len(workers)), "starting Python")
    began = heard = time.monotonic()
    with tqdm(
        total=flops,
        desc="starting workers",
        unit="FLOP",
        unit_scale=True,
        mininterval=REFRESH_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
        miniters=0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left"
        "{postfix}",
    ) as bar:
        while True:
            ended, now = not any(process.is_alive() for process in workers), time.monotonic()
            late = [i for i in starting if workers[i].is_alive()]
            if late and now - began > start_minutes * 60:
                raise InputError(
                    f"{workers[late[0]].name} was not ready within {start_minutes:g} minutes "
                    f"(engine.start_minutes); it was still {starting[late[0]]}"
                )
            try:
                event = events.get(timeout=0 if ended else POLL_SECONDS)
            except queue.Empty:
                if ended:
                    break
                if not starting and now - heard > QUIET_SECONDS:
                    bar.set_postfix_str(f"no update for {now - heard:.0f} s", refresh=False)
                bar.update(0)
                continue
            if not isinstance(event, Alive):
                heard = time.monotonic()
            match event:
                case Starting(index, ""):
                    starting.pop(index, None)
                case Starting(index, doing):
                    starting[index] = doing
                    bar.set_description_str(f"starting workers: {doing}", refresh=False)
                case Started(name):
                    bar.set_description_str(f"run {done + 1} of {runs} ({name})", refresh=False)
                case Progress(worked, count):
                    tokens += count
                    elapsed = bar.format_dict["elapsed"]
                    bar.set_postfix_str(f"{tokens / elapsed:,.0f} tokens/s", refresh=False)
                    bar.update(worked)
                case Finished(name, diverged):
                    done += 1
                    if diverged:
                        bar.write(f"{name}: {diverged}; the run is marked FAILED and left out")
                case Waiting(count):
                    bar.set_description_str(
                        f"waiting for {layout.count(count, 'run')} of other workers"
                    )
                case Failed(error):
                    raise error
    for process in workers:
        if process.exitcode:
            logger.warning(f"{process.name} died with exit code {process.exitcode}")

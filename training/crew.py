"""The parent of the workers: starts them once, shows their progress, ends them."""

import multiprocessing
import os
import queue
import sys
from collections.abc import Sequence
from typing import Any

import mlflow
from tqdm import tqdm

from training import worker
from training.corpus import Corpus
from training.devices import Machines
from training.events import Alone, Event, Failed, Finished, Job, Progress, Queue, Started, Waiting
from training.launcher import Launched
from training.ledger import Ledger
from training.settings import Run

POLL_SECONDS = 0.5
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # of the progress line, on a terminal and in a log
END_SECONDS = 30  # for a worker to close its MLflow run


def train(runs: Sequence[Run], corpus: Corpus, work: Queue | Alone, machines: Machines) -> None:
    """Train every run that nobody has trained.

    A worker that is killed leaves its run to the others. Raises InputError for a mistake that a
    worker met, DivergedError where the work is one run, RuntimeError with the worker's traceback
    for anything else.
    """
    if isinstance(work, Queue):
        Ledger(work.ledger_url, work.name).plan(runs)
    job = Job(work, mlflow.get_tracking_uri(), corpus.manifest, machines)
    indices = range(min(machines.workers, len(runs)))
    if machines.ranks == 1 and machines.hostfile is None:
        context = multiprocessing.get_context("spawn")
        events: Any = context.Queue()
        crew: list[Any] = [
            context.Process(target=_work, args=(job, i, events), name=f"worker-{i}")
            for i in indices
        ]
    else:
        events = queue.Queue()
        crew = [Launched(job, i, events) for i in indices]
    try:
        for process in crew:
            process.start()
        _follow(crew, events, len(runs), sum(run.flops(corpus.vocab_size) for run in runs))
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
        for process in crew:
            process.join(END_SECONDS)


def _work(job: Job, index: int, events: Any) -> None:
    """A worker of one process, a child of this one."""
    parent = os.getppid()

    def tell(event: Event) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt  # nobody is left to work for
        events.put(event)

    sys.exit(worker.main(job, index, tell))


def _follow(crew: Sequence[Any], events: Any, runs: int, flops: int) -> None:
    """Show the workers' events until all have ended; raises the error that a worker ended by."""
    done = tokens = 0
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
            ended = not any(process.is_alive() for process in crew)
            try:
                event = events.get(timeout=0 if ended else POLL_SECONDS)
            except queue.Empty:
                if ended:
                    break
                bar.update(0)
                continue
            match event:
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
                    bar.set_description_str(f"waiting for {count} runs of other workers")
                case Failed(error):
                    raise error
    for process in crew:
        if process.exitcode:
            print(f"{process.name} died with exit code {process.exitcode}", file=sys.stderr)

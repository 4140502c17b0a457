"""The parent of the workers: starts them once, shows their progress, ends them."""

import multiprocessing
import queue
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from training import worker
from training.errors import InputError
from training.events import Event, Failed, Finished, Job, Progress, Started, Waiting
from training.ledger import Ledger
from training.settings import Run

POLL_SECONDS = 0.5
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # of the progress line, on a terminal and in a log
END_SECONDS = 30  # for a worker to close its MLflow run


def train_all(runs: Sequence[Run], vocab_size: int, job: Job, workers: int) -> None:
    """Train every run that nobody has trained, on `workers` processes of this machine.

    A worker that is killed leaves its run to the others. Raises InputError for a mistake that a
    worker met, RuntimeError with the worker's traceback for anything else.
    """
    Ledger(job.ledger_url, job.ledger_name).plan(runs)

    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    crew = [
        context.Process(target=worker.main, args=(job, i, events), name=f"worker-{i}")
        for i in range(min(workers, len(runs)))
    ]
    try:
        for process in crew:
            process.start()
        _follow(crew, events, len(runs), sum(run.flops(vocab_size) for run in runs))
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
        for process in crew:
            process.join(END_SECONDS)


def _follow(
    crew: Sequence[BaseProcess], events: "multiprocessing.Queue[Event]", runs: int, flops: int
) -> None:
    """Show the workers' events until all have ended."""
    done = tokens = 0
    failures: list[Failed] = []
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
                case Failed():
                    failures.append(event)
                    break
    for failure in failures:
        raise (InputError if failure.users_mistake else RuntimeError)(failure.message)
    for process in crew:
        if process.exitcode:
            print(f"{process.name} died with exit code {process.exitcode}", file=sys.stderr)

"""The parent of the workers: starts them once, shows their progress, ends them."""

import multiprocessing
import queue
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from training import worker
from training.errors import InputError
from training.events import Event, Failed, Finished, Job, Progress, Started, Waiting
from training.ledger import Ledger
from training.settings import Run

POLL_SECONDS = 0.5
END_SECONDS = 30  # for a worker to close its MLflow run


def train_all(runs: Sequence[Run], vocab_size: int, job: Job, workers: int) -> None:
    """Train every run that nobody has trained, on `workers` processes of this machine.

    Raises InputError for a mistake that a worker met, RuntimeError with the worker's traceback
    for anything else.
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
        desc="starting workers (on a CPU the first start compiles a kernel, half a minute)",
        unit="FLOP",
        unit_scale=True,
        mininterval=1,
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
                bar.refresh()
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
    dead = [process.name for process in crew if process.exitcode]
    if dead:
        raise RuntimeError(
            f"{', '.join(dead)} died ({[p.exitcode for p in crew]}); finished runs are kept: "
            "start again to train the others"
        )

"""How fast a ledger of many planned runs is: enqueueing, and claims a second.

    python -m tests.benchmarks.claim_runs [--planned 10000] [--claims 300]

Workers claim runs that take no time, from SQLite and from PostgreSQL; for comparison, Optuna's own
`ask` and `tell` on the same store.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna

from tests.support import postgres
from tests.support.tiny_runs import unprepared
from training.workers.ledger import Claim, Ledger, Trained
from training.workers.trial_store import TrialStore

WORKERS = (1, 4)


def claim(url: str, name: str, count: int) -> None:
    """Claim and end so many runs."""
    done = 0

    def train(_: Claim) -> Trained:
        nonlocal done
        done += 1
        if done > count:
            raise KeyboardInterrupt
        return Trained(1.0)

    with suppress(KeyboardInterrupt):
        Ledger(url, name).work(train, lambda *_: None)


def measure(url: str, planned: int, claims: int) -> None:
    runs = [unprepared(f"run{i:05}", i) for i in range(planned)]
    started = time.perf_counter()
    Ledger(url, "sweep").enqueue(runs)
    seconds = time.perf_counter() - started
    print(f"  enqueue {planned:,} runs: {seconds:.1f} s, {planned / seconds:,.0f} a second")
    started = time.perf_counter()
    Ledger(url, "sweep").enqueue(runs)
    print(f"  look whether they are enqueued: {time.perf_counter() - started:.1f} s")
    context = multiprocessing.get_context("spawn")
    for workers in WORKERS:
        processes = [
            context.Process(target=claim, args=(url, "sweep", claims // workers))
            for _ in range(workers)
        ]
        claim(url, "sweep", 1)  # imports
        started = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - started
        print(f"  {workers} workers: {claims / seconds:,.0f} claims a second, starts included")
    started = time.perf_counter()
    claim(url, "sweep", claims)
    seconds = time.perf_counter() - started
    print(f"  1 worker in this process: {claims / seconds:,.0f} claims a second")
    storage = TrialStore(url, 10, 60, lambda *_: None)
    study = optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)
    some = max(1, claims // 30)
    started = time.perf_counter()
    for _ in range(some):
        study.tell(study.ask(), 1.0)
    theirs = some / (time.perf_counter() - started)
    ours = claims / seconds
    print(f"  Optuna's ask and tell: {theirs:,.1f} a second; ratio {ours / theirs:,.1f}")


@contextmanager
def store(kind: str) -> Iterator[str]:
    """The URL of an empty ledger."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'ledger.db'}"
    else:
        with postgres.server() as server:
            yield server.database()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planned", type=int, default=10_000)
    parser.add_argument("--claims", type=int, default=300)
    arguments = parser.parse_args()
    for kind in ("sqlite", "postgresql"):
        print(kind)
        with store(kind) as url:
            measure(url, arguments.planned, arguments.claims)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory of this process at most: {memory:,.0f} MB")


if __name__ == "__main__":
    main()

"""Wall time of a sweep against its training times.

    python -m tests.benchmarks.sweep_overhead [--proxies 24] [--seconds 30] [--workers 2]

The ratio of the wall time of the command to the training times of its proxies over its workers:
starting Python and the workers, claims, logging, delivery and idle workers at the end are the rest.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from tests.support.commands import ROOT
from tests.support.studies import made_up_texts, miniature_study, written
from training.record import keys


def sweep(study: str, workers: int) -> float:
    """Seconds that the command takes."""
    started = time.perf_counter()
    command = ["-m", "pipelines", "sweep", "--study", study, "--workers", str(workers)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def training_seconds() -> list[float]:
    """Of each proxy, from its claim to its last point."""
    runs = mlflow.search_runs(["0"], f"tags.{keys.STAGE} = '{keys.PROXY}'", output_format="list")
    return [(run.info.end_time - run.info.start_time) / 1000 for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proxies", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
        study = miniature_study(folder, made_up_texts())
        study["sweep"] = {"mixtures": arguments.workers, "sizes": ["small"]}
        study["training"]["steps"] = 2000
        sweep(written(folder, study), arguments.workers)  # how fast this machine is
        pace = 2000 / max(training_seconds())
        study["training"]["steps"] = round(pace * arguments.seconds)
        study["name"] = "measured"
        study["sweep"]["mixtures"] = arguments.proxies
        known = len(training_seconds())
        wall = sweep(written(folder, study), arguments.workers)
        seconds = sorted(training_seconds())[known:]
        ideal = sum(seconds) / arguments.workers
        print(
            f"{arguments.proxies} proxies of {ideal * arguments.workers / len(seconds):.0f} s, "
            f"{arguments.workers} workers: {wall:.0f} s; training alone {ideal:.0f} s; ratio "
            f"{wall / ideal:.3f}"
        )


if __name__ == "__main__":
    main()

"""Runs per second that `import` writes, and what ten thousand of them would take.

Run it from the project's folder: python -m tests.benchmarks.import_runs
"""

import argparse
import itertools
import time

import mlflow

from fitting.data import histories
from fitting.importing import writer
from tests.benchmarks import stores

VAL_DOMAINS, EVALUATIONS = 20, 10
MANY = 10_000


def measured(kind: str, count: int) -> tuple[float, float, float]:
    """Seconds to write the runs, to find that all are there already, and to pull them."""
    runs = stores.made_up_runs(count, VAL_DOMAINS, EVALUATIONS)
    with stores.opened(kind):
        experiment_id = mlflow.create_experiment("import")
        marks = [time.perf_counter()]
        with mlflow.start_run(experiment_id=experiment_id) as active:
            writer.write(runs, writer.Parent(experiment_id, active.info.run_id, "made up"))
        marks.append(time.perf_counter())
        assert not writer.missing(runs, experiment_id, {})
        marks.append(time.perf_counter())
        assert len(histories.pull([experiment_id]).table) == count * EVALUATIONS
        marks.append(time.perf_counter())
    write, again, pull = (end - start for start, end in itertools.pairwise(marks))
    return write, again, pull


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--stores", default="sqlite,postgresql,http")
    options = parser.parse_args()
    lines = [
        f"importing {options.runs} runs × {VAL_DOMAINS} domains × {EVALUATIONS} evaluations",
        f"{'store':12}{'runs/s':>8}{'again, s':>10}{'pull, s':>9}"
        f"{f'minutes for {MANY:,} (scaled)':>30}",
    ]
    for kind in options.stores.split(","):
        write, again, pull = measured(kind, options.runs)
        minutes = write * MANY / options.runs / 60
        lines.append(f"{kind:12}{options.runs / write:8.1f}{again:10.2f}{pull:9.2f}{minutes:30.1f}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

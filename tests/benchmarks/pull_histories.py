"""Seconds to pull run histories: from compact tags, from metrics in threads, by the plain loop.

Run it from the project's folder: python -m tests.benchmarks.pull_histories
"""

import argparse
import time
from collections.abc import Callable

import mlflow

from fitting.data import histories
from fitting.importing import writer
from tests.benchmarks import stores
from training.record import keys
from training.record.mlflow_runs import search

VAL_DOMAINS, EVALUATIONS = 22, 12
REPEATS = 3


def seconds(pull: Callable[[], object], repeats: int = 1) -> float:
    """The fastest of some repetitions."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        pull()
        best = min(best, time.perf_counter() - start)
    return best


def plain_loop(experiment_id: str, runs: int) -> None:
    """What one writes first: one request a run and metric."""
    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment_id], max_results=runs):
        for key in run.data.metrics:
            client.get_metric_history(run.info.run_id, key)


def measured(kind: str, runs: int, plain_runs: int) -> tuple[float, float, float]:
    """Seconds of pull() with the compact tags, pull() without them, and the plain loop."""
    with stores.opened(kind):
        client = mlflow.MlflowClient()
        experiment_id = client.create_experiment("pull")
        written = stores.made_up_runs(runs, VAL_DOMAINS, EVALUATIONS)
        writer.write(written, writer.Parent(experiment_id, "0" * 32, "made up"))
        compact = seconds(lambda: histories.pull([experiment_id]), REPEATS)
        expected = histories.pull([experiment_id]).table
        for run in search([experiment_id], f"tags.{keys.STAGE} = '{keys.PROXY}'"):
            for key in [key for key in run.data.tags if key.startswith(keys.HISTORY)]:
                client.delete_tag(run.info.run_id, key)
        bare = seconds(lambda: histories.pull([experiment_id]))
        assert len(histories.pull([experiment_id]).table) == len(expected) == runs * EVALUATIONS
        plain = seconds(lambda: plain_loop(experiment_id, plain_runs)) * runs / plain_runs
    return compact, bare, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--plain-runs", type=int, default=20, help="runs of the plain loop")
    parser.add_argument("--stores", default="sqlite,postgresql,http")
    options = parser.parse_args()
    plain_runs = min(options.plain_runs, options.runs)
    lines = [
        f"pulling {options.runs} runs × {VAL_DOMAINS} metrics × {EVALUATIONS} evaluations, seconds "
        f"(the plain loop measured on {plain_runs} runs and scaled)",
        f"{'store':12}{'compact tags':>14}{'metrics, threads':>18}{'plain loop':>12}"
        f"{'threads/tags':>14}{'plain/tags':>12}",
    ]
    for kind in options.stores.split(","):
        compact, bare, plain = measured(kind, options.runs, plain_runs)
        lines.append(
            f"{kind:12}{compact:14.2f}{bare:18.2f}{plain:12.2f}"
            f"{bare / compact:13.0f}×{plain / compact:11.0f}×"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()

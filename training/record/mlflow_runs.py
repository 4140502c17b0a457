"""Starting, ending, finding and reading MLflow runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException

from training.record import keys, stores
from training.record.errors import InputError
from training.record.garbage import collection_paused
from training.record.history import history_from_tags
from training.record.secrets import masked
from training.record.version import TAG, version

PARAM_BATCH, METRIC_BATCH = 100, 1000  # per request, MLflow's limits
PAGE_SIZE = 1000  # runs per search request


@contextmanager
def open_run(**options: Any) -> Iterator[mlflow.ActiveRun]:
    """`mlflow.start_run` that sets the final status: FINISHED, KILLED or FAILED.

    The tag `error` holds the reason of a failure; another tag holds the project's version.
    """
    with mlflow.start_run(**options) as active:
        try:
            mlflow.set_tag(TAG, version())
            yield active
        except KeyboardInterrupt:
            with stores.short_timeouts():
                mlflow.set_tag(keys.ERROR, "interrupted")
                mlflow.end_run("KILLED")
            raise
        except Exception as error:
            mlflow.set_tag(keys.ERROR, masked(str(error))[: keys.TAG_LIMIT])
            raise


def close(run_id: str, reason: str) -> None:
    """End a run that a crash left RUNNING, if it is in this store."""
    client = mlflow.MlflowClient()
    try:
        running = client.get_run(run_id).info.status == "RUNNING"
    except MlflowException:
        return
    if running:
        client.set_tag(run_id, keys.ERROR, reason)
        client.set_terminated(run_id, "KILLED")


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Log any number of params in as few batches as MLflow allows."""
    entries = [
        Param(key, masked(value) if isinstance(value, str) else str(value))
        for key, value in params.items()
    ]
    for start in range(0, len(entries), PARAM_BATCH):
        batch = entries[start : start + PARAM_BATCH]
        mlflow.MlflowClient().log_batch(run_id, params=batch)


def threads(most: int) -> int:
    """Useful number of threads: `most` to hide a server's latency, 1 on SQLite, which locks."""
    return 1 if mlflow.get_tracking_uri().startswith("sqlite") else most


def search(experiment_ids: Sequence[str], query: str) -> list[Run]:
    """Every run of the experiments that matches a filter string."""
    client = mlflow.MlflowClient()
    runs: list[Run] = []
    token = None
    while True:
        with collection_paused():  # which takes two thirds of the time to read large pages
            page = client.search_runs(
                list(experiment_ids), query, max_results=PAGE_SIZE, page_token=token
            )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def last_losses(run_id: str) -> dict[str, float]:
    """Final validation losses of a run, nats per token."""
    history = history_from_tags(mlflow.get_run(run_id).data.tags)
    if history is None:
        raise InputError(f"run {run_id} has no history; delete it and start again to train it")
    return dict(zip(history.domains, history.losses[-1], strict=True))

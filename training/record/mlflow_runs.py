"""Starting, ending, finding and reading MLflow runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import mlflow
from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException

from training.record import keys, stores
from training.record.errors import InputError
from training.record.garbage import collection_paused
from training.record.history import History, history_from_tags
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
            _end("KILLED", "interrupted")
            raise
        except Exception as error:
            _end("FAILED", masked(str(error))[: keys.TAG_LIMIT])
            raise


def _end(status: str, reason: str) -> None:
    """End the active run; a server that is away is not waited for."""
    with stores.short_timeouts(), suppress(MlflowException):
        mlflow.set_tag(keys.ERROR, reason)
    with stores.short_timeouts(), suppress(MlflowException):
        mlflow.end_run(status)


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


def readable(run: Run, unit: str) -> bool:
    """Whether `in_unit` can read a run's losses in this unit."""
    own, metrics = run.data.params.get(keys.UNIT, keys.NATS), run.data.metrics
    losses = [key.removeprefix(keys.VAL_LOSS) for key in metrics if key.startswith(keys.VAL_LOSS)]
    converts = (own, unit) == (keys.NATS, keys.BITS)
    return own == unit or (converts and all(keys.VAL_BPB + name in metrics for name in losses))


def in_unit(run: Run, history: History, unit: str) -> History:
    """A run's history with its losses in this unit.

    Raises InputError for a run whose losses cannot be converted: only nats per token can, into bits
    per byte, where the run has the metrics val_bpb/<domain>.
    """
    own = run.data.params.get(keys.UNIT, keys.NATS)
    if unit == own:
        return history
    name, metrics = run.info.run_name, run.data.metrics
    if (own, unit) != (keys.NATS, keys.BITS):
        raise InputError(f"run {name!r} has losses in {own}, which cannot be read as {unit}")
    factors = []
    for domain in history.domains:
        bits, nats = metrics.get(keys.VAL_BPB + domain), metrics.get(keys.VAL_LOSS + domain)
        if bits is None or not nats:
            raise InputError(
                f"run {name!r} has no metric {keys.VAL_BPB}{domain}, so its losses cannot be read "
                f"as {unit}; fit it in {own}"
            )
        factors.append(bits / nats)  # the same at every step
    losses = (tuple(x * f for x, f in zip(row, factors, strict=True)) for row in history.losses)
    return replace(history, losses=tuple(losses))


def last_losses(run_id: str, unit: str = keys.NATS) -> dict[str, float]:
    """Final validation losses of a run in this unit."""
    history = read_history(run_id, unit)
    return dict(zip(history.domains, history.losses[-1], strict=True))


def read_history(run_id: str, unit: str = keys.NATS) -> History:
    """The history of a run that training completed, in this unit; InputError if it has none."""
    run = mlflow.get_run(run_id)
    history = history_from_tags(run.data.tags)
    if history is None:
        why = run.data.tags.get(keys.ERROR, "delete it and start again to train it")
        raise InputError(f"run {run.info.run_name!r} ({run_id}) has no history: {why}")
    return in_unit(run, history, unit)

"""Write runs that were trained elsewhere to MLflow as complete proxy runs, as training does."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from fitting.importing.table_reader import ImportedRun
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_tags
from training.record.mlflow_runs import search, threads
from training.record.secrets import masked
from training.record.version import TAG, version

THREADS = 4  # each holds two of the 15 connections that SQLAlchemy gives the store
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # between progress lines, on a terminal and in a log


@dataclass(frozen=True)
class Parent:
    """The import run, parent of the runs that it writes."""

    experiment_id: str
    run_id: str
    source: str  # the import's parameter `source`


def missing(
    runs: Sequence[ImportedRun], experiment_id: str, weights: Mapping[str, float]
) -> list[ImportedRun]:
    """The runs that the experiment does not hold yet.

    Raises InputError if it holds different content under a run's name, or some of the runs with
    another unit or other weights.
    """
    names = {run.name for run in runs}
    query = f"tags.{keys.IMPORTED_FROM} != '' and tags.{keys.COMPLETE} = 'true'"
    finished = search([experiment_id], f"attributes.status = 'FINISHED' and {query}")
    stored = {run.info.run_name: run for run in finished if run.info.run_name in names}
    fingerprints = {name: run.data.tags[keys.FINGERPRINT] for name, run in stored.items()}
    again = [run for run in runs if run.name in stored]
    units = {run.name: stored[run.name].data.params.get(keys.UNIT, keys.NATS) for run in again}
    if differing := [run for run in again if run.unit != units[run.name]]:
        raise InputError(
            f"unit: {len(differing)} of these runs are already in the experiment, imported in "
            f"{units[differing[0].name]}, not {differing[0].unit}; delete them there or import "
            "into another experiment"
        )
    if changed := [run.name for run in again if fingerprint(run) != fingerprints[run.name]]:
        raise InputError(
            f"source: the experiment holds other content for {len(changed)} of these runs "
            f"({', '.join(changed[:5])}); delete them there or import into another experiment"
        )
    for run_id in {run.data.tags[keys.PARENT] for run in stored.values()}:
        stored_weights = keys.without_prefix(keys.WEIGHT, mlflow.get_run(run_id).data.params)
        if stored_weights != weights:
            raise InputError(
                f"weights: {len(stored)} of these runs are already in the experiment, imported by "
                f"run {run_id} {'with other' if stored_weights else 'without'} weights; import "
                "with the same weights and give others to fit, or import into another experiment"
            )
    return [run for run in runs if run.name not in stored]


def write(runs: Sequence[ImportedRun], parent: Parent) -> None:
    """Write the runs below their parent and show the progress.

    First ends the runs that a killed import left RUNNING. A failed or interrupted import leaves no
    incomplete run FINISHED, and no run RUNNING.
    """
    _close_abandoned({fingerprint(run) for run in runs}, parent.experiment_id)
    bar = tqdm(
        total=len(runs),
        desc="importing",
        unit=" runs",
        mininterval=REFRESH_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {n_fmt} of {total_fmt} runs, {rate_fmt}, "
        "{remaining} left",
    )
    with bar, ThreadPoolExecutor(threads(THREADS)) as pool:
        futures = [pool.submit(_write, run, parent) for run in runs]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def fingerprint(run: ImportedRun) -> str:
    """A hash of a run's content, with the digits that its compact history stores."""
    losses = zip(*run.history.losses, strict=True)
    content = {
        "name": run.name,
        keys.N_PARAMS: run.n_params,
        "mixture": {domain: f"{share:.9g}" for domain, share in run.mixture.items()},
        "steps": run.history.steps,
        keys.TOKENS: run.history.tokens,
        "losses": {
            domain: [f"{loss:.9g}" for loss in series]
            for domain, series in zip(run.history.domains, losses, strict=True)
        },
        **(
            {
                "accuracies": {
                    task: [f"{accuracy:.9g}" for accuracy in series]
                    for task, series in run.history.accuracies.items()
                }
            }
            if run.history.accuracies
            else {}
        ),
        "params": run.params,
        keys.CHECK: run.check,
        **({keys.UNIT: run.unit} if run.unit != keys.NATS else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _close_abandoned(fingerprints: Collection[str], experiment_id: str) -> None:
    """End the runs with these fingerprints that an interrupted import left RUNNING."""
    client = mlflow.MlflowClient()
    query = f"attributes.status = 'RUNNING' and tags.{keys.IMPORTED_FROM} != ''"
    for run in search([experiment_id], query):
        if run.data.tags[keys.FINGERPRINT] in fingerprints:
            client.set_tag(run.info.run_id, keys.ERROR, "its import was interrupted")
            client.set_terminated(run.info.run_id, "KILLED")


def _write(run: ImportedRun, parent: Parent) -> None:
    """Create a run with its tags, log all params and metrics in one batch, and finish it."""
    client = mlflow.MlflowClient()
    h = run.history
    tags = {
        keys.STAGE: keys.PROXY,
        keys.PARENT: parent.run_id,
        keys.IMPORTED_FROM: masked(parent.source)[: keys.TAG_LIMIT],
        keys.FINGERPRINT: fingerprint(run),
        TAG: version(),
        **({keys.CHECK: "true"} if run.check else {}),
        **history_tags(h),
        keys.COMPLETE: "true",  # counts only once the run is FINISHED
    }
    params = {
        **keys.with_prefix(keys.MIXTURE, run.mixture),
        keys.N_PARAMS: run.n_params,
        **({keys.TOKENS_PER_STEP: per_step} if (per_step := _tokens_per_step(h)) else {}),
        keys.UNIT: run.unit,
        **run.params,
    }
    now = int(time.time() * 1000)
    metrics = [
        Metric(keys.VAL_LOSS + domain, loss, now, step)
        for step, losses in zip(h.steps, h.losses, strict=True)
        for domain, loss in zip(h.domains, losses, strict=True)
        if not math.isnan(loss)
    ]
    metrics += [
        Metric(keys.ACCURACY + task, accuracy, now, step)
        for task, series in h.accuracies.items()
        for step, accuracy in zip(h.steps, series, strict=True)
        if not math.isnan(accuracy)
    ]
    metrics += [Metric(keys.TOKENS, t, now, s) for s, t in zip(h.steps, h.tokens, strict=True)]
    run_id = client.create_run(parent.experiment_id, tags=tags, run_name=run.name).info.run_id
    try:
        client.log_batch(run_id, metrics, [Param(key, str(value)) for key, value in params.items()])
        client.set_terminated(run_id)
    except BaseException as error:
        _mark_failed(run_id, error)
        raise


def _mark_failed(run_id: str, error: BaseException) -> None:
    """End a run that cannot be written, if the store still answers."""
    client = mlflow.MlflowClient()
    with suppress(MlflowException):
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else masked(str(error))[: keys.TAG_LIMIT]
        client.set_tag(run_id, keys.ERROR, reason)
        client.set_terminated(run_id, "KILLED" if interrupted else "FAILED")


def _tokens_per_step(h: History) -> int | None:
    """Tokens per step if all evaluations agree, else None; a single step 1 stands for unknown."""
    trained = [(s, t) for s, t in zip(h.steps, h.tokens, strict=True) if t]
    if h.steps == (1,) or not trained or not all(step for step, _ in trained):
        return None
    ratios = {tokens / step for step, tokens in trained}
    ratio = ratios.pop()
    return None if ratios or ratio % 1 else int(ratio)

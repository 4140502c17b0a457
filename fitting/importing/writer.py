"""Runs that were trained elsewhere → MLflow: complete proxy runs, as training writes them."""

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

from fitting.importing.table_reader import ForeignRun
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_tags
from training.record.mlflow_runs import search, threads
from training.record.secrets import masked
from training.record.version import TAG, version

THREADS = 4  # each holds two of the store's database connections, of which SQLAlchemy gives 15
REFRESH_SECONDS, LOG_SECONDS = 1, 15  # of the progress line, on a terminal and in a log


@dataclass(frozen=True)
class Parent:
    """The import run above the runs that it writes."""

    experiment_id: str
    run_id: str
    source: str  # what the user gave to import


def missing(
    runs: Sequence[ForeignRun], experiment_id: str, weights: Mapping[str, float]
) -> list[ForeignRun]:
    """The runs that the experiment does not hold yet.

    Raises InputError when it holds other content under a run's name, or runs of this source that
    were imported with another unit or other weights.
    """
    names = {run.name for run in runs}
    query = f"tags.{keys.IMPORTED_FROM} != '' and tags.{keys.COMPLETE} = 'true'"
    finished = search([experiment_id], f"attributes.status = 'FINISHED' and {query}")
    there = {run.info.run_name: run for run in finished if run.info.run_name in names}
    content = {name: run.data.tags[keys.FINGERPRINT] for name, run in there.items()}
    known = [run for run in runs if run.name in there]
    units = {run.name: there[run.name].data.params.get(keys.UNIT, keys.NATS) for run in known}
    if other := [run for run in known if run.unit != units[run.name]]:
        raise InputError(
            f"unit: {len(other)} of these runs are in the experiment already, imported in "
            f"{units[other[0].name]}, not {other[0].unit}; delete them there or import into "
            "another experiment"
        )
    if changed := [run.name for run in known if fingerprint(run) != content[run.name]]:
        raise InputError(
            f"source: the experiment holds other content of {len(changed)} of these runs "
            f"({', '.join(changed[:5])}); delete them there or import into another experiment"
        )
    for run_id in {run.data.tags[keys.PARENT] for run in there.values()}:
        before = keys.without_prefix(keys.WEIGHT, mlflow.get_run(run_id).data.params)
        if before != weights:
            raise InputError(
                f"weights: {len(there)} of these runs are in the experiment already, imported by "
                f"run {run_id} {'with other' if before else 'without'} weights; import with the "
                "same, and give other weights to fit, or import into another experiment"
            )
    return [run for run in runs if run.name not in there]


def write(runs: Sequence[ForeignRun], parent: Parent) -> None:
    """Write the runs below their parent, showing the progress.

    What an import that was killed left of them is closed first. One that fails or is interrupted
    leaves no run FINISHED that is not whole, and none RUNNING.
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
        written = [pool.submit(_write, run, parent) for run in runs]
        try:
            for done in as_completed(written):
                done.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def fingerprint(run: ForeignRun) -> str:
    """A hash of a run's content, to the digits that its compact history keeps."""
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
        "params": run.params,
        keys.CHECK: run.check,
        **({keys.UNIT: run.unit} if run.unit != keys.NATS else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _close_abandoned(fingerprints: Collection[str], experiment_id: str) -> None:
    """End the runs of this content that an interrupted import left RUNNING."""
    client = mlflow.MlflowClient()
    query = f"attributes.status = 'RUNNING' and tags.{keys.IMPORTED_FROM} != ''"
    for run in search([experiment_id], query):
        if run.data.tags[keys.FINGERPRINT] in fingerprints:
            client.set_tag(run.info.run_id, keys.ERROR, "its import was interrupted")
            client.set_terminated(run.info.run_id, "KILLED")


def _write(run: ForeignRun, to: Parent) -> None:
    """One run: created with its tags, then all params and metrics at once, then FINISHED."""
    client = mlflow.MlflowClient()
    h = run.history
    tags = {
        keys.STAGE: keys.PROXY,
        keys.PARENT: to.run_id,
        keys.IMPORTED_FROM: masked(to.source)[: keys.TAG_LIMIT],
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
    metrics += [Metric(keys.TOKENS, t, now, s) for s, t in zip(h.steps, h.tokens, strict=True)]
    run_id = client.create_run(to.experiment_id, tags=tags, run_name=run.name).info.run_id
    try:
        client.log_batch(run_id, metrics, [Param(key, str(value)) for key, value in params.items()])
        client.set_terminated(run_id)
    except BaseException as error:
        _give_up(run_id, error)
        raise


def _give_up(run_id: str, error: BaseException) -> None:
    """End a run that cannot be written, as far as the store still answers."""
    client = mlflow.MlflowClient()
    with suppress(MlflowException):
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else masked(str(error))[: keys.TAG_LIMIT]
        client.set_tag(run_id, keys.ERROR, reason)
        client.set_terminated(run_id, "KILLED" if interrupted else "FAILED")


def _tokens_per_step(h: History) -> int | None:
    """Tokens a step where every evaluation agrees; a lone step 1 stands for an unknown one."""
    trained = [(s, t) for s, t in zip(h.steps, h.tokens, strict=True) if t]
    if h.steps == (1,) or not trained or not all(step for step, _ in trained):
        return None
    ratios = {tokens / step for step, tokens in trained}
    ratio = ratios.pop()
    return None if ratios or ratio % 1 else int(ratio)

"""MLflow → the tidy table: the validation losses of the complete proxy runs of experiments."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow.entities import Run

from training import record
from training.errors import InputError

THREADS = 16
PAGE = 1000


@dataclass(frozen=True)
class Histories:
    """What was pulled, and what was left out and why."""

    table: pd.DataFrame  # tidy: run, n_params, tokens, step, mixture/<domain>…, val_loss/<domain>…
    left_out: dict[str, str]  # run name → reason
    parents: tuple[str, ...]  # ids of the sweep or import runs above them


def pull(experiment_ids: Sequence[str], runs: str = "") -> Histories:
    """The histories of the complete proxy runs that an MLflow filter string selects.

    Reads the compact copy in a run's tags; a run without one is read from its metric histories.
    Raises InputError when there is none.
    """
    proxies = _search(experiment_ids, runs)
    left_out = {run.info.run_name or run.info.run_id: _unfit(run) for run in proxies}
    left_out = {name: reason for name, reason in left_out.items() if reason}
    complete = [run for run in proxies if not _unfit(run)]
    _refuse_several_studies(complete, experiment_ids)
    if not complete:
        raise InputError(
            f"no complete proxy run in experiment {', '.join(experiment_ids)}"
            + (f" matches {runs!r}" if runs else "")
            + (f" ({len(left_out)} incomplete ones left out)" if left_out else "")
        )
    with ThreadPoolExecutor(THREADS) as pool:
        frames = list(pool.map(_frame, complete))
    table = pd.concat(frames, ignore_index=True)
    mixtures = [c for c in table if c.startswith(record.MIXTURE)]
    table[mixtures] = table[mixtures].fillna(0.0)  # a domain another run does not know
    parents = {run.data.tags.get(record.PARENT, "") for run in complete} - {""}
    return Histories(table, left_out, tuple(sorted(parents)))


@dataclass(frozen=True)
class Purpose:
    """What the sweeps above the runs were for; None or empty where they do not say or agree."""

    n_params: float | None
    tokens: float | None
    weights: dict[str, float]
    default_mixture: dict[str, float]
    lowest: dict[str, float]
    highest: dict[str, float]


def purpose(parents: Sequence[str]) -> Purpose:
    """Target, weights, default mixture and bounds from the params of the sweep runs."""
    params = [mlflow.get_run(run_id).data.params for run_id in parents]
    agreed = {
        key: value
        for key, value in (params[0] if params else {}).items()
        if all(p.get(key) == value for p in params)
    }
    n_params, tokens = agreed.get(record.TARGET_N_PARAMS), agreed.get(record.TARGET_TOKENS)
    return Purpose(
        n_params=float(n_params) if n_params else None,
        tokens=float(tokens) if tokens else None,
        weights=record.without_prefix(record.WEIGHT, agreed),
        default_mixture=record.without_prefix(record.DEFAULT_MIXTURE, agreed),
        lowest=record.without_prefix(record.LOWEST, agreed),
        highest=record.without_prefix(record.HIGHEST, agreed),
    )


def _search(experiment_ids: Sequence[str], runs: str) -> list[Run]:
    client = mlflow.MlflowClient()
    query = f"tags.{record.STAGE} = '{record.PROXY}'" + (f" and {runs}" if runs else "")
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(list(experiment_ids), query, max_results=PAGE, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _unfit(run: Run) -> str:
    """Why a run cannot be used; empty when it can."""
    tags = run.data.tags
    if record.DIVERGED in tags:
        return tags.get(record.ERROR, "diverged")
    if run.info.status != "FINISHED":
        return f"status {run.info.status}"
    if tags.get(record.COMPLETE) != "true":
        return "not marked complete"
    return "" if record.N_PARAMS in run.data.params else f"no param {record.N_PARAMS}"


def _refuse_several_studies(runs: Sequence[Run], experiment_ids: Sequence[str]) -> None:
    """Losses of differently trained runs are not comparable; imported runs belong to no study."""
    found = sorted({run.data.tags[record.STUDY] for run in runs if record.STUDY in run.data.tags})
    if len(found) > 1:
        raise InputError(
            f"experiment {', '.join(experiment_ids)} holds proxy runs of different data or "
            f"training ({', '.join(found)}), whose losses are not comparable; choose with "
            f"runs=\"tags.{record.STUDY} = '{found[-1]}'\""
        )


def _frame(run: Run) -> pd.DataFrame:
    """One run's rows of the tidy table."""
    history = record.history_from_tags(run.data.tags) or _from_metrics(run)
    frame = pd.DataFrame(
        {
            "run": run.info.run_id,
            record.N_PARAMS: float(run.data.params[record.N_PARAMS]),
            record.TOKENS: history.tokens,
            "step": history.steps,
        }
    )
    mixture = record.without_prefix(record.MIXTURE, run.data.params)
    for column, value in record.with_prefix(record.MIXTURE, mixture).items():
        frame[column] = value
    losses = pd.DataFrame(
        history.losses, columns=[record.VAL_LOSS + name for name in history.domains]
    )
    return pd.concat([frame, losses], axis=1)


def _from_metrics(run: Run) -> record.History:
    """A history from the metrics themselves, one request a domain."""
    client = mlflow.MlflowClient()
    keys = [key for key in run.data.metrics if key.startswith(record.VAL_LOSS)]
    series = {
        key: {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
        for key in [*keys, record.TOKENS]
    }
    tokens = series.pop(record.TOKENS)
    steps = sorted(set(tokens).intersection(*series.values()))
    return record.History(
        tuple(key.removeprefix(record.VAL_LOSS) for key in keys),
        tuple(steps),
        tuple(int(tokens[step]) for step in steps),
        tuple(tuple(series[key][step] for key in keys) for step in steps),
    )

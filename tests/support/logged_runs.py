"""Runs of a known law in a tracking store, and a fit of them."""

from typing import Any

import mlflow
import pandas as pd

from fitting.selection.forms import Options
from pipelines import fit
from tests.support import synthetic
from training.record import keys
from training.record.history import History, history_tags


def log_runs(table: pd.DataFrame, parent: dict[str, str] | None = None) -> str:
    """Write a tidy table as complete proxy runs below a sweep run; returns the experiment id."""
    with mlflow.start_run(tags={keys.STAGE: keys.SWEEP}) as sweep:
        mlflow.log_params(parent or {})
    for name, rows in table.groupby("run", sort=False):
        domains = synthetic.VAL_DOMAINS
        losses = rows[[keys.VAL_LOSS + d for d in domains]].to_numpy()
        steps, tokens = (tuple(rows[c].astype(int).tolist()) for c in ("step", keys.TOKENS))
        done = History(domains, steps, tokens, tuple(map(tuple, losses.tolist())))
        tags = {keys.STAGE: keys.PROXY, keys.COMPLETE: "true", **history_tags(done)}
        with mlflow.start_run(run_name=str(name), parent_run_id=sweep.info.run_id, tags=tags):
            first = rows.iloc[0]
            mlflow.log_params(
                {c: first[c] for c in rows if c.startswith(keys.MIXTURE)}
                | {keys.N_PARAMS: int(first[keys.N_PARAMS])}
            )
    return str(sweep.info.experiment_id)


def fit_table(table: pd.DataFrame, experiment: str = "", **options: Any) -> fit.RegisteredFit:
    experiment = experiment or log_runs(table)
    with mlflow.start_run(tags={keys.STAGE: keys.FIT}):
        return fit.fit(
            [experiment], "", "mixture-predictor", Options(("joint",), compare=False), **options
        )


def fit_truth() -> fit.RegisteredFit:
    table = synthetic.table(synthetic.joint_law(), noise=0.002)
    return fit_table(table, target=dict(synthetic.TARGET))

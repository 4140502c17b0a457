"""Run tables as files, and their import."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from pipelines import entry, imports
from tests.support.commands import ROOT, call
from training.record import keys
from training.record.mlflow_runs import search

DATA = ROOT.parent / "shared" / "data"
published = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published data in {DATA}")


def run_import(source: str | Path, form: str, **options: str) -> Run:
    """`import` as its entry point does it; returns the run it leaves."""
    with entry.stage(keys.IMPORT) as active:
        call(imports, source=str(source), format=form, **options)
    return mlflow.get_run(active.info.run_id)


def proxies(experiment: str = "Default", query: str = "") -> dict[str, Run]:
    """The proxy runs of an experiment by name."""
    found = mlflow.get_experiment_by_name(experiment)
    query = f"tags.stage = 'proxy' {query}"
    return {run.info.run_name: run for run in search([found.experiment_id], query)}


def table(runs: int = 3, evaluations: int = 2) -> pd.DataFrame:
    """A tidy table of full-precision numbers."""
    rng = np.random.default_rng(0)
    size = runs * evaluations
    shares = np.repeat(rng.dirichlet(np.ones(3), runs), evaluations, axis=0)
    steps = np.tile(100 * (np.arange(evaluations) + 1), runs)
    return pd.DataFrame(
        {
            "run": np.repeat([f"0{i}" for i in range(runs)], evaluations),
            "n_params": np.repeat(10**6 * (1 + np.arange(runs)), evaluations),
            "tokens": steps * 1024,
            "step": steps,
            **{f"mixture/{d}": x for d, x in zip(("web", "code", "a b"), shares.T, strict=True)},
            **{f"val_loss/{d}": rng.uniform(1, 4, size) for d in ("web", "c.d")},
        }
    )


def write_csv(path: Path, rows: pd.DataFrame) -> str:
    rows.to_csv(path, index=False)
    return str(path)

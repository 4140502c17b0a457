"""Run tables as files, and their import."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from fitting.data.observations import Observations
from fitting.importing import pair
from fitting.importing.table_reader import RunTable
from pipelines import entry, imports
from tests.support.commands import ROOT, call
from training.record import keys
from training.record.mlflow_runs import search

DATA = ROOT.parent / "shared" / "data"
MIXINGLAWS = DATA / "mixinglaws"
STRIP = {  # texts at the ends of a swarm's columns
    "regmix": ("train_the_pile_", "metric/the_pile_", "_val_loss"),
    "olmix": (),
}
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


def tidy(found: RunTable) -> pd.DataFrame:
    """The tidy table of runs, with what tells check runs."""
    rows = []
    for run in found.runs:
        h = run.history
        for step, tokens, losses in zip(h.steps, h.tokens, h.losses, strict=True):
            named = dict(zip(h.domains, losses, strict=True))
            rows.append(
                {
                    "run": run.name,
                    "check": run.check,
                    keys.N_PARAMS: float(run.n_params),
                    keys.TOKENS: float(tokens),
                    "step": step,
                    **keys.with_prefix(keys.MIXTURE, run.mixture),
                    **keys.with_prefix(keys.VAL_LOSS, named),
                }
            )
    return pd.DataFrame(rows)


def swarm(name: str, folder: Path | None = None) -> Observations:
    """The published runs of RegMix or Olmix, all of one scale."""
    runs = pair.pair(str(folder or DATA / name), None, None, STRIP[name])
    return Observations.from_tidy(tidy(runs).drop(columns="check"))


def write_csv(path: Path, rows: pd.DataFrame) -> str:
    rows.to_csv(path, index=False)
    return str(path)

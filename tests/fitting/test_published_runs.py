"""The published run histories, imported and fitted with the defaults a user gets."""

import json
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from fitting import fit
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate
from fitting.importing.table_reader import RunTable
from fitting.selection import choose
from fitting.selection.cross_validation import spearman
from fitting.selection.forms import Options
from pipelines import entry, imports
from pipelines import fit as fit_pipeline
from pipelines.command.table import read
from pipelines.runs.fitted_runs import Checkpoints
from tests.support.commands import call
from tests.support.tables import MIXINGLAWS, published, swarm
from training.record import keys

DOMAINS = "common_crawl,c4,github,arxiv,books,stackexchange,wikipedia"
WEIGHTS = MIXINGLAWS / "valid_weight.json"
LARGE = Target(805_736_448, 100_000 * 4096 * 256)

pytestmark = published


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_1b_runs_are_predicted_from_small_ones() -> None:
    """Fitted on 70M–410M up to step 30 000, check runs left out, no option tuned to the data.

    The paper's own predictions of these two runs miss by −0.110 and −0.063.
    """
    given = {
        "source": str(MIXINGLAWS / "RedPajama"),
        "format": "mixinglaws",
        "domains": DOMAINS,
        "weights": str(WEIGHTS),
    }
    runs = imports.read(read(imports.Parameters, given))
    with entry.stage(keys.IMPORT):
        call(imports, **given)
    target = {"n_params": LARGE.n_params, "tokens": LARGE.tokens}
    with entry.stage(keys.FIT):
        fitted = fit_pipeline.fit(
            ["0"],
            "params.size != '1B'",
            "mixture-predictor",
            Options(compare=False),
            target,
            checkpoints=Checkpoints(max_step=30_000),
        )
    assert len(fitted.fit.observations.runs) == 100
    observed, table = _large_runs(runs)
    predicted = mlflow.pyfunc.load_model(fitted.registered.uri).predict(table)
    error = pd.Series((predicted["objective"] - observed).to_numpy(), index=table.index)
    end = error.xs(100_000, level="step")
    assert (end.abs() < 0.03).all()
    optimised, default = (predicted["objective"].loc[(i, 100_000)] for i in ("1B-997", "1B-999"))
    assert optimised < default
    half_width = (predicted["objective_high"] - predicted["objective"]).xs(100_000, level="step")
    assert (end.abs() < half_width).all()
    assert error.abs().mean() < 0.03


def _large_runs(runs: RunTable) -> tuple[pd.Series, pd.DataFrame]:
    """The 1B runs' weighted losses and what a predictor is asked, by (run, step)."""
    weights = json.loads(WEIGHTS.read_text())
    total = sum(weights.values())
    rows: list[dict[str, Any]] = []
    for run in runs.runs:
        if run.n_params == LARGE.n_params:
            history = run.history
            for step, tokens, losses in zip(
                history.steps, history.tokens, history.losses, strict=True
            ):
                named = dict(zip(history.domains, losses, strict=True))
                mean = sum(weights[d] * named[d] for d in weights) / total
                mixture = keys.with_prefix(keys.MIXTURE, run.mixture)
                rows.append(
                    {
                        "run": run.name,
                        "step": step,
                        "observed": mean,
                        "n_params": float(run.n_params),
                        "tokens": float(tokens),
                        **mixture,
                    }
                )
    table = pd.DataFrame(rows).set_index(["run", "step"])
    return table.pop("observed"), table


@pytest.fixture(scope="module")
def regmix() -> Observations:
    return swarm("regmix")


@pytest.mark.slow
def test_the_ranking_of_unseen_regmix_runs_beats_boosted_trees(regmix: Observations) -> None:
    """Five folds; Spearman's ρ of each validation domain, averaged over the domains."""
    o = regmix
    x, scale = o.proportions(), Target(o.n_params[0], o.tokens[0])
    fold = np.random.default_rng(0).permutation(len(x)) % 5
    ours, trees = np.empty(o.losses.shape), np.empty(o.losses.shape)
    candidate = Candidate("joint", power=0.5, ridge=1e-6, terms=2)
    with threadpool_limits(1):
        for k in range(5):
            train, rows = fold != k, fold == k
            law = candidates.fit(o.rows(train), candidate, scale)
            ours[rows] = law.predict(x[rows], o.n_params[rows], o.tokens[rows])
            for v in range(o.losses.shape[1]):
                model = HistGradientBoostingRegressor(random_state=0)
                model.fit(x[train], o.losses[train, v])
                trees[rows, v] = model.predict(x[rows])
    rank = [spearman(o.losses, p).mean() for p in (ours, trees)]
    assert rank[0] > rank[1] > 0.98


@pytest.mark.slow
def test_intervals_cover_held_out_mixtures(regmix: Observations) -> None:
    """Fitted to 100 of RegMix's runs by the defaults, asked about the other 412."""
    drawn = np.random.default_rng(1).permutation(len(regmix.mixtures)) < 100
    train, rest = regmix.rows(drawn[regmix.mixture_of]), regmix.rows(~drawn[regmix.mixture_of])
    weights = np.full(len(regmix.val_domains), 1 / len(regmix.val_domains))
    scale = Target(regmix.n_params[0], regmix.tokens[0])
    options = Options(methods=("joint",), compare=False)
    found = fit.fit(train, weights, scale, options)
    asked = rest.proportions(), rest.n_params, rest.tokens
    error = (found.law.predict(*asked) - rest.losses) @ weights
    covered = (np.abs(error) < found.interval.half_width(weights, *asked)).mean()
    assert 0.8 < covered < 0.99


@pytest.mark.slow
def test_cross_validation_finds_the_feature_and_two_exponentials(regmix: Observations) -> None:
    """What defaults choose on 200 of RegMix's runs."""
    drawn = np.random.default_rng(0).permutation(len(regmix.mixtures)) < 200
    o = regmix.rows(drawn[regmix.mixture_of])
    weights = np.full(len(o.val_domains), 1 / len(o.val_domains))
    options = Options(methods=("joint",), compare=False)
    result = choose.choose(o, weights, Target(o.n_params[0], o.tokens[0]), options)
    assert result.best.power < 1
    assert result.scores.domain_spearman > 0.97
    assert result.scores.mixing_rmse < 0.4 * result.scores.mean_prediction_rmse

"""Whole fits: of many sizes and lengths, of few runs and of many domains."""

import numpy as np
import pandas as pd
import pytest

from fitting import fit, plots
from fitting.artifact.laws import JointLaw
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from tests.support import synthetic
from tests.support.fits import FOUR_SIZES, NINE_LENGTHS, QUICK, WEIGHTS, fitted


@pytest.mark.slow
def test_start_up_transients_are_recognised_and_left_out() -> None:
    table = synthetic.table(
        synthetic.joint_law(), noise=0.002, sizes=FOUR_SIZES, tokens=NINE_LENGTHS
    )
    assert fitted(table).transient == ""
    spoilt = table.copy()
    early = spoilt["tokens"] < 1.6e8  # three of nine: losses still above any law
    for name in synthetic.VAL_DOMAINS:
        spoilt.loc[early, f"val_loss/{name}"] += 0.5 * (2e8 / spoilt["tokens"][early]) ** 2
    found = fitted(spoilt)
    assert found.transient.startswith(f"{early.sum()} evaluations before")
    clean = fitted(table)
    assert isinstance(found.law, JointLaw)
    assert isinstance(clean.law, JointLaw)
    assert found.law.beta == pytest.approx(clean.law.beta, rel=0.2)
    kept = fitted(spoilt, keep_transients=True)
    assert kept.transient == ""
    assert len(kept.observations.tokens) == len(table)


def test_runs_that_all_differ_in_scale_are_fitted_too() -> None:
    """No two runs of one size or length, as random designs have them."""
    rng = np.random.default_rng(0)
    truth, mixtures = synthetic.joint_law(), synthetic.mixtures(60)
    tables = [
        synthetic.table(truth, 60, noise=0.003, sizes=(n,), tokens=(0.25 * d, 0.5 * d, d))
        for n, d in zip(rng.uniform(1e6, 16e6, 60), rng.uniform(4e8, 8e8, 60), strict=True)
    ]
    own = [t[t["run"].str.startswith(f"mix{i:02d}-")] for i, t in enumerate(tables)]
    found = fitted(pd.concat(own, ignore_index=True))
    assert len(np.unique(found.observations.n_params)) == 60
    assert found.choice.scores.objective_mae < 0.01
    ones = np.ones(60)
    error = found.law.predict(mixtures, 16e6 * ones, 8e8 * ones) - truth.predict(
        mixtures, 16e6 * ones, 8e8 * ones
    )
    assert np.abs(error @ WEIGHTS).max() < 0.02
    assert plots.step_curves(found.observations, found.law, WEIGHTS, (64e6, 3.2e9)) is not None
    assert plots.size_curves(found.observations, found.law, WEIGHTS, (64e6, 3.2e9)) is not None


@pytest.mark.parametrize("domains", [2, 30])
def test_from_five_runs_of_two_domains_to_many_of_thirty(domains: int) -> None:
    rng = np.random.default_rng(0)
    count = 5 if domains == 2 else 300
    mixtures = rng.dirichlet(np.full(domains, 0.7), count)
    slope = rng.uniform(-2, 0, (2, domains))
    table = pd.DataFrame(mixtures, columns=[f"mixture/d{j}" for j in range(domains)])
    table["run"] = [f"run{i}" for i in range(count)]
    table["n_params"], table["tokens"], table["step"] = 1e6, 1e9, 1000
    for v in range(2):
        table[f"val_loss/v{v}"] = 2 + np.exp(mixtures**0.5 @ slope[v])
    o = Observations.from_tidy(table)
    found = fit.fit(o, np.full(2, 0.5), Target(1e6, 1e9), QUICK)
    scores = found.choice.scores
    assert scores.objective_mae < 0.5 * scores.mean_prediction_mae

"""The interval: it covers what it claims, and is wider where less is known."""

import json

import numpy as np
import pytest

from fitting.artifact import laws
from fitting.artifact.spec import Target
from tests.support import synthetic
from tests.support.fits import FOUR_SIZES, TARGET, WEIGHTS, fitted


@pytest.mark.slow
def test_the_interval_covers_what_it_claims() -> None:
    """Fits of seeded noisy tables: the truth lies in the 90 % interval in about that many."""
    truth = synthetic.joint_law()
    unseen = synthetic.mixtures(40, seed=9)
    covered: dict[str, list[float]] = {"inside": [], "beyond": []}
    for seed in range(8):
        noise = 0.01 * np.random.default_rng(seed).standard_normal((10, 4))  # of each mixture
        table = synthetic.table(truth, 10, noise=0.003, seed=10 * seed, sizes=FOUR_SIZES)
        for v, name in enumerate(synthetic.VAL_DOMAINS):
            table[f"val_loss/{name}"] += noise[table["run"].str[3:5].astype(int), v]
        found = fitted(table)
        for where, at in (("inside", Target(16e6, 8e8)), ("beyond", TARGET)):
            scale = np.full(40, at.n_params), np.full(40, at.tokens)
            error = (found.law.predict(unseen, *scale) - truth.predict(unseen, *scale)) @ WEIGHTS
            width = found.interval.half_width(WEIGHTS, unseen, *scale)
            covered[where].append(float((np.abs(error) < width).mean()))
    assert np.mean(covered["inside"]) > 0.85
    assert np.mean(covered["beyond"]) > 0.85


def test_the_interval_widens_away_from_the_data_and_beyond_it() -> None:
    found = fitted(synthetic.table(synthetic.joint_law(), 10, noise=0.01, sizes=FOUR_SIZES))
    middle, corner = np.full((1, 3), 1 / 3), np.array([[0.0, 0.0, 1.0]])
    here, there = ((np.array([n]), np.array([d])) for n, d in ((16e6, 8e8), (64e6, 3.2e9)))
    widths = [
        found.interval.half_width(WEIGHTS, mixture, *scale)[0]
        for mixture, scale in ((middle, here), (corner, here), (middle, there))
    ]
    assert widths[0] < widths[1]
    assert widths[0] < widths[2]
    again = laws.from_json(json.loads(json.dumps(laws.to_json(found.interval))))
    assert again.half_width(WEIGHTS, corner, *here) == pytest.approx(widths[1])

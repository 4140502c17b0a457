"""The warnings of a fit: each where it is due, and nowhere else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fitting import fit
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.diagnostics.optimum import Space
from fitting.fit import Fit
from tests.support import synthetic
from tests.support.fits import FOUR_SIZES, NINE_LENGTHS, QUICK, TARGET, fitted


def warning_of(found: Fit, name: str) -> str:
    return next(s.warning for s in found.diagnostics if s.name == name)


def test_noise_without_a_law_is_told() -> None:
    table = synthetic.table(synthetic.joint_law(), 10)
    noise = np.random.default_rng(0).normal(3, 0.1, (10, len(synthetic.VAL_DOMAINS)))
    for i, name in enumerate(synthetic.VAL_DOMAINS):
        table[f"val_loss/{name}"] = noise[table["run"].str[3:5].astype(int), i]
    found = fitted(table)
    assert "little better than their mean" in warning_of(found, "mixing_error_against_mean")
    good = fitted(synthetic.table(synthetic.joint_law(), 10, noise=0.002))
    assert not warning_of(good, "mixing_error_against_mean")


def test_a_learning_rate_that_decayed_within_the_steps_is_told() -> None:
    table = synthetic.table(
        synthetic.joint_law(), noise=0.002, sizes=FOUR_SIZES, tokens=NINE_LENGTHS
    )
    late = (table["tokens"] - 4e8).clip(lower=0) / 4e8
    for name in synthetic.VAL_DOMAINS:
        table[f"val_loss/{name}"] -= 0.15 * late
    found = fitted(table)
    assert "if the learning rate decays" in warning_of(found, "backtest_steps")
    assert found.half_width(TARGET) > found.half_width(Target(16e6, 8e8))


@pytest.mark.slow
def test_a_best_mixture_far_from_every_sampled_one_is_told() -> None:
    table = synthetic.table(synthetic.joint_law(), 40, noise=0.001)
    few = table["mixture/web"] > 0.6  # all sampled in one corner, the best elsewhere
    assert "bound the proportions" in warning_of(fitted(table[few]), "optimum_distance")
    assert not warning_of(fitted(table), "optimum_distance")
    bounded = fitted(table[few], space=Space(np.array([0.6, 0.0, 0.0]), np.ones(3), np.eye(3)))
    assert bounded.best.mixture[0] >= 0.6 - 1e-9


def test_a_best_mixture_that_moves_with_size_is_told() -> None:
    truth, other = synthetic.joint_law(), synthetic.joint_law()
    other = replace(other, slope=other.slope[:, :, ::-1], floor=other.floor)
    large = synthetic.table(truth, 14, noise=0.001, sizes=(4e6, 16e6))
    small = synthetic.table(other, 14, noise=0.001, sizes=(1e6,))
    weights = np.array([0.0, 0.0, 1.0, 0.0])
    o = Observations.from_tidy(pd.concat([large, small], ignore_index=True))
    found = fit.fit(o, weights, Target(16e6, 8e8), QUICK)
    assert [best.n_params for best in found.by_size] == [1e6, 4e6, 16e6]
    moves = float(np.abs(found.by_size[0].mixture - found.best.mixture).sum() / 2)
    assert moves > 0.2
    assert next(s.value for s in found.diagnostics if s.name == "optimum_moves") == moves
    steady = fit.fit(Observations.from_tidy(large), weights, Target(16e6, 8e8), QUICK)
    assert not warning_of(steady, "optimum_moves")

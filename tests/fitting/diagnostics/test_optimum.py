"""The best mixture of a law."""

import numpy as np
import pytest

from fitting.diagnostics import optimum
from fitting.diagnostics.optimum import Space
from tests.support import synthetic
from tests.support.fits import TARGET, WEIGHTS


def test_the_best_mixture_is_found_within_its_bounds() -> None:
    law = synthetic.joint_law()
    low, high = np.array([0.1, 0.0, 0.05]), np.array([0.9, 0.4, 0.5])
    space = Space(low, high, np.eye(3))
    best = optimum.minimise(law, WEIGHTS, TARGET, synthetic.mixtures(5), space)
    grid = np.array(
        [[i, j, 1000 - i - j] for i in range(0, 1001, 5) for j in range(0, 1001 - i, 5)]
    )
    grid = grid / 1000
    grid = grid[((grid >= low) & (grid <= high)).all(axis=1)]
    ones = np.ones(len(grid))
    least = (law.predict(grid, TARGET.n_params * ones, TARGET.tokens * ones) @ WEIGHTS).min()
    assert best.objective <= least + 1e-9
    assert best.mixture.sum() == pytest.approx(1)
    # of domains that keep their proportions: the best point of a line
    spread = np.array([[0.75, 0], [0.25, 0], [0, 1.0]])
    bundled = optimum.minimise(
        law, WEIGHTS, TARGET, synthetic.mixtures(5), Space(np.zeros(2), np.ones(2), spread)
    )
    shares = np.linspace(0, 1, 2001)
    line = np.column_stack([shares, 1 - shares]) @ spread.T
    ones = np.ones(len(line))
    least = (law.predict(line, TARGET.n_params * ones, TARGET.tokens * ones) @ WEIGHTS).min()
    assert bundled.mixture[0] == pytest.approx(3 * bundled.mixture[1])
    assert bundled.objective <= least + 1e-7
    assert ((best.mixture >= low - 1e-12) & (best.mixture <= high + 1e-12)).all()

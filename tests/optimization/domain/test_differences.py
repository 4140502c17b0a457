"""Differences of the objective from a base mixture."""

import numpy as np
import pytest

from optimization.domain.objective import Objective
from tests.support.objectives import WEIGHTS, differences_of, own


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_differences_have_their_slope_and_vanish_at_their_base(power: float) -> None:
    law = own(power)
    worst = Objective(law, np.eye(4), np.array([0.1, 0.2, 0.3, 0.4]))
    base = np.array([0.4, 0.3, 0.2, 0.1])
    for objective in (Objective(law, WEIGHTS[:, None], np.zeros(1)), worst):
        found = differences_of(objective, base)
        assert found.half_width(base[None])[0] == 0
        for mixture in np.random.default_rng(0).dirichlet(np.ones(4), 5):
            value, slope = found.smooth(mixture, 1e-6)
            moved = mixture + 1e-6 * np.vstack([np.eye(4), -np.eye(4)])
            ends = found(moved)
            assert value == pytest.approx(found(mixture[None])[0], abs=1e-5)
            assert slope == pytest.approx((ends[:4] - ends[4:]) / 2e-6, rel=1e-3, abs=1e-3)

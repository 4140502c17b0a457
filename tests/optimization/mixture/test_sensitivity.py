"""The near-optimal set."""

import numpy as np
import pytest

from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from optimization.domain.objective import Objective
from optimization.mixture import sensitivity
from optimization.search.descent import descend
from tests.support.objectives import DOMAINS, WEIGHTS, differences_of, own


def test_what_is_near_optimal_is_what_cannot_be_told_from_the_best() -> None:
    objective = Objective(own(), WEIGHTS[:, None], np.zeros(1))
    allowed = feasible(Constraints(bounds={"a": (0.0, 0.5)}), DOMAINS, 1e9)
    best = descend(objective, allowed, np.array([0.25, 0.25, 0.25, 0.25]))
    found = differences_of(objective, best)
    points = np.random.default_rng(0).dirichlet(np.ones(4), 200_000)
    near = points[(found(points) <= 0) & allowed.inside(points)]
    ranges = sensitivity.near_optimal(found, allowed)
    assert ranges["lowest"].to_numpy() == pytest.approx(near.min(axis=0), abs=0.02)
    assert ranges["highest"].to_numpy() == pytest.approx(near.max(axis=0), abs=0.02)

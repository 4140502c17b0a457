"""The nearest allowed mixture."""

import numpy as np
import pytest

from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from optimization.search import projection
from tests.support.objectives import DOMAINS


def test_what_is_forbidden_moves_to_the_nearest_that_is_allowed() -> None:
    allowed = feasible(Constraints(bounds={"a": (0.0, 0.0)}), DOMAINS, 1e9)
    assert projection.nearest(np.array([0.4, 0.3, 0.2, 0.1]), allowed) == pytest.approx(
        [0, 1 / 2, 1 / 3, 1 / 6], abs=1e-4
    )
    name, even = projection.uniform(allowed)
    assert name == "nearest to uniform"
    assert even == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=1e-4)
    assert allowed.inside(even[None])[0]
    name, even = projection.uniform(feasible(Constraints(), DOMAINS, 1e9))
    assert (name, even.tolist()) == ("uniform", [0.25] * 4)
    bundled = Constraints(bundles={"ab": {"a": 0.5, "b": 0.5}}, bounds={"c": (0.4, 0.5)})
    _, even = projection.uniform(feasible(bundled, DOMAINS, 1e9))
    assert even == pytest.approx([0.2, 0.2, 0.4, 0.2], abs=1e-4)

"""Laws at one scale: their values, their slopes, and a bound that they do not pass."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given

from fitting.artifact.laws import Law, LowerBound, side_by_side
from tests.support import synthetic
from tests.support.strategies import mixtures

N_PARAMS, TOKENS, STEP = 32e6, 1.6e9, 1e-6
KINDS = ("joint", "shrinking", "bimix", "shukor_additive", "shukor_joint", "power_sum", "stack")


@cache
def law_of(kind: str) -> Law:
    if kind == "stack":
        return synthetic.stacked_law()
    if kind in ("joint", "shrinking"):
        return synthetic.joint_law(power=0.5, g=0.1 * (kind == "shrinking"), terms=2)
    return synthetic.published_law(kind)


def value(bound: LowerBound, mixture: np.ndarray) -> float:
    features = np.where(bound.powers == 0, np.log(mixture + 0.25 / 3), mixture**bound.powers)
    return float(bound.constant + (bound.coefficients * features).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_law_at_one_scale_is_the_law_and_has_its_slopes(kind: str) -> None:
    law, points = law_of(kind), synthetic.mixtures(20, seed=3)
    surface = law.mixing(N_PARAMS, TOKENS)
    ones = np.ones(len(points))
    expected = law.predict(points, N_PARAMS * ones, TOKENS * ones)
    assert surface.predict(points) == pytest.approx(expected)
    slopes = surface.jacobian(points)
    for j in range(points.shape[1]):
        step = STEP * np.eye(points.shape[1])[j]
        change = surface.predict(points + step) - surface.predict(points - step)
        assert slopes[:, :, j] == pytest.approx(change / (2 * STEP), rel=1e-4, abs=1e-5)
    twice = surface.side_by_side([surface, surface])
    assert twice.predict(points) == pytest.approx(np.tile(expected, 2))
    twice = side_by_side([law, law])
    assert twice.predict(points, N_PARAMS * ones, TOKENS * ones) == pytest.approx(
        np.tile(expected, 2)
    )


@pytest.mark.parametrize("kind", KINDS)
@given(at=mixtures(3), other=mixtures(3), weights=mixtures(4))
def test_no_mixture_lies_below_the_bound(
    kind: str, at: list[float], other: list[float], weights: list[float]
) -> None:
    surface = law_of(kind).mixing(N_PARAMS, TOKENS)
    w, here, there = np.array(weights), np.array(at), np.array(other)
    bound = surface.lower_bound(here, w)
    assert value(bound, there) <= surface.predict(there[None])[0] @ w + 1e-9
    assert value(bound, here) == pytest.approx(surface.predict(here[None])[0] @ w)

"""The bound of a sum of functions of one variable each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimization.search import envelope
from optimization.search.envelope import Sum

POWERS = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0, 1.7, 3.0])
TERMS = st.lists(st.tuples(st.floats(-3, 3), POWERS, st.floats(0.1, 1)), min_size=1, max_size=5)


def of(terms: list[tuple[float, float, float]], entropy: float = 0.0) -> Sum:
    coefficients, powers, scales = np.array(terms).T
    return Sum(coefficients, powers, scales, 0.05, entropy)


def values(h: Sum, v: np.ndarray) -> np.ndarray:
    x = v[:, None] * h.scales
    terms = np.where(h.powers == 0, np.log(x + h.offset), x**h.powers)
    entropy = h.entropy * v * np.log(np.maximum(v, 1e-300))
    return np.asarray((h.coefficients * terms).sum(axis=1) + entropy)


@given(TERMS, st.floats(0, 2), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1))
def test_the_hull_is_convex_and_below_the_function(
    terms: list[tuple[float, float, float]], entropy: float, low: float, width: float, share: float
) -> None:
    h, high = of(terms, entropy), low + width
    points = h.hull(low, high, low + share * width)
    v = np.linspace(low, high, 301)
    assert (np.interp(v, *points.T) <= values(h, v) + 1e-9).all()
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    assert (np.diff(slopes) >= -1e-6 * np.abs(slopes[:-1]).clip(1)).all()


def test_the_hull_of_a_convex_function_touches_it() -> None:
    h = of([(-1.0, 0.5, 1.0), (2.0, 1.7, 1.0)])
    points = h.hull(0.0, 1.0, 0.3)
    assert np.interp(0.3, *points.T) == pytest.approx(values(h, np.array([0.3]))[0], abs=1e-12)


def test_the_least_sum_over_the_simplex_is_found() -> None:
    """−Σ w_j √r_j is least where r_j ∝ w_j², at −√Σ w_j²."""
    w = np.array([0.5, 1.0, 2.0])
    best = w**2 / (w**2).sum()
    hulls = [of([(-x, 0.5, 1.0)]).hull(0.0, 1.0, r) for x, r in zip(w, best, strict=True)]
    least, point = envelope.least(hulls, np.empty((0, 3)), np.empty(0), 3)
    assert least == pytest.approx(-np.sqrt((w**2).sum()), abs=1e-8)
    assert least <= -np.sqrt((w**2).sum()) + 1e-12
    assert point == pytest.approx(best, abs=1e-3)

"""The simplex: the cube maps into the bounds and back, and rounded mixtures sum to one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimization.domain import simplex
from tests.support.strategies import mixtures

BOUNDS = [
    ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ([0.1, 0.2, 0.0, 0.05], [0.5, 0.9, 0.3, 1.0]),
    ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
    ([0.0] * 12, [0.1] * 10 + [1.0] * 2),
]


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
def test_the_cube_maps_into_the_bounds_and_back(lower: list[float], upper: list[float]) -> None:
    points = np.random.default_rng(0).random((500, len(lower) - 1))
    points[0], points[1] = 0.0, 1.0
    low, high = np.array(lower), np.array(upper)
    mixtures = simplex.from_cube(points, low, high)
    assert mixtures.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert (mixtures >= low - 1e-12).all()
    assert (mixtures <= high + 1e-12).all()
    again = simplex.from_cube(simplex.to_cube(mixtures, low, high), low, high)
    assert np.abs(again - mixtures).max() < 1e-9


@st.composite
def bounds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest proportions that leave a mixture between them, each (M,)."""
    inner = np.array(draw(st.integers(2, 8).flatmap(lambda domains: mixtures(domains))))
    part = st.lists(st.floats(0, 1), min_size=len(inner), max_size=len(inner))
    lower = inner * np.array(draw(part))
    return lower, inner + (1 - inner) * np.array(draw(part))


@given(bounds(), st.data())
def test_every_point_of_the_cube_is_a_mixture_within_the_bounds(
    limits: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    lower, upper = limits
    size = len(lower) - 1
    point = np.array(data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    mixture = simplex.from_cube(point[None], lower, upper)
    assert mixture.sum() == pytest.approx(1, abs=1e-12)
    assert (mixture >= lower - 1e-12).all()
    assert (mixture <= upper + 1e-12).all()
    again = simplex.from_cube(simplex.to_cube(mixture, lower, upper), lower, upper)
    assert again == pytest.approx(mixture, abs=1e-9)


@given(st.integers(2, 12).flatmap(lambda domains: mixtures(domains)), st.integers(2, 8))
def test_a_rounded_mixture_sums_to_one(shares: list[float], decimals: int) -> None:
    mixture = np.array(shares)
    rounded = simplex.rounded(mixture, decimals)
    assert rounded.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(rounded - mixture).max() <= len(mixture) * 10.0**-decimals
    assert np.array_equal(rounded, rounded.round(decimals))


def test_a_uniform_cube_gives_a_uniform_simplex() -> None:
    points = np.random.default_rng(0).random((40_000, 4))
    mixtures = simplex.from_cube(points, np.zeros(5), np.ones(5))
    assert mixtures.mean(axis=0) == pytest.approx(0.2, abs=0.005)
    assert mixtures.var(axis=0) == pytest.approx(0.2 * 0.8 / 6, rel=0.03)  # Dirichlet(1, …, 1)

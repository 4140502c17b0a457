"""The simplex, the design and the search."""

import numpy as np
import pytest

from optimization import design, search, simplex

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
    mixtures = simplex.from_cube(points, lower, upper)
    assert mixtures.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert all(simplex.inside(mixture, lower, upper, 1e-12) for mixture in mixtures)
    again = simplex.from_cube(simplex.to_cube(mixtures, lower, upper), lower, upper)
    assert np.abs(again - mixtures).max() < 1e-9


def test_a_uniform_cube_gives_a_uniform_simplex() -> None:
    points = np.random.default_rng(0).random((40_000, 4))
    mixtures = simplex.from_cube(points, np.zeros(5), np.ones(5))
    assert mixtures.mean(axis=0) == pytest.approx(0.2, abs=0.005)
    assert mixtures.var(axis=0) == pytest.approx(0.2 * 0.8 / 6, rel=0.03)  # Dirichlet(1, …, 1)


def test_the_design_covers_the_bounded_simplex() -> None:
    lower, upper = np.full(4, 0.05), np.full(4, 0.7)
    given = np.array([[0.6, 0.2, 0.1, 0.1], [0.25] * 4])
    mixtures = design.space_filling(14, given, lower, upper, seed=0)
    assert mixtures.shape == (14, 4)
    assert np.array_equal(mixtures[:2], given)
    assert mixtures.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert all(simplex.inside(m, lower, upper, 1e-4) for m in mixtures[2:])
    assert len(np.unique(mixtures, axis=0)) == 14
    assert np.array_equal(mixtures, design.space_filling(14, given, lower, upper, seed=0))

    def worst_gap(points: np.ndarray) -> float:
        everywhere = simplex.from_cube(np.random.default_rng(1).random((2000, 3)), lower, upper)
        return float(np.abs(everywhere[:, None] - points).sum(axis=2).min(axis=1).mean())

    rng = np.random.default_rng(2)
    by_chance = [
        worst_gap(np.vstack([given, simplex.from_cube(rng.random((12, 3)), lower, upper)]))
        for _ in range(20)
    ]
    assert worst_gap(mixtures) < np.mean(by_chance)


@pytest.mark.parametrize("optimum", [[0.5, 0.3, 0.2], [0.0, 0.6, 0.4], [1.0, 0.0, 0.0]])
def test_the_search_finds_a_known_optimum(optimum: list[float]) -> None:
    domains = ("a", "b", "c")
    result = search.search(
        lambda mixtures: ((mixtures - optimum) ** 2).sum(axis=1),
        domains,
        np.zeros(3),
        np.ones(3),
        known={"uniform": dict.fromkeys(domains, 1 / 3)},
        trials=300,
        seed=0,
    )
    found = np.array([result.mixture[d] for d in domains])
    assert np.abs(found - optimum).max() < 0.06
    assert len(result.trials) == 300
    assert result.objective == result.trials["objective"].min()


def test_the_search_respects_bounds_and_starts_from_known_mixtures() -> None:
    domains = ("a", "b")
    known = {"inside": {"a": 0.42, "b": 0.58}, "outside": {"a": 0.9, "b": 0.1}}
    result = search.search(
        lambda mixtures: np.abs(mixtures[:, 0] - 1),
        domains,
        np.array([0.3, 0.2]),
        np.array([0.6, 1.0]),
        known,
        trials=40,
        seed=0,
    )
    assert result.trials["a"].iloc[0] == pytest.approx(0.42)
    assert result.trials["a"].between(0.3, 0.6).all()
    assert result.mixture["a"] == pytest.approx(0.6, abs=0.01)

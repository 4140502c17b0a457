"""Designs: they fill the allowed set, and satisfy its constraints."""

import numpy as np
import pytest

from optimization.design import space_filling
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import DECIMALS, feasible
from training.record.errors import InputError

Array = np.ndarray
DOMAINS = ("a", "b", "c", "d")
BOUNDS = dict.fromkeys(DOMAINS, (0.05, 0.7))
GIVEN = np.array([[0.6, 0.2, 0.1, 0.1], [0.25] * 4])


def test_the_spread_design_covers_the_bounded_simplex() -> None:
    allowed = feasible(Constraints(BOUNDS), DOMAINS, 1)
    mixtures = space_filling.designed("spread", 14, GIVEN, allowed, seed=0)
    assert np.array_equal(mixtures, space_filling.designed("spread", 14, GIVEN, allowed, seed=0))

    def worst_gap(points: Array) -> float:
        everywhere = allowed.from_cube(np.random.default_rng(1).random((2000, 3)))
        return float(np.abs(everywhere[:, None] - points).sum(axis=2).min(axis=1).mean())

    rng = np.random.default_rng(2)
    by_chance = [
        worst_gap(np.vstack([GIVEN, allowed.from_cube(rng.random((12, 3)))])) for _ in range(20)
    ]
    assert worst_gap(mixtures) < np.mean(by_chance)


@pytest.mark.parametrize("way", space_filling.WAYS)
@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(BOUNDS),
        Constraints({"a+b": (0.3, 0.6), "c": (0.0, 0.5)}),
        Constraints(bundles={"ab": {"a": 0.25, "b": 0.75}}),
    ],
)
def test_every_design_satisfies_the_constraints(way: str, constraints: Constraints) -> None:
    allowed = feasible(constraints, DOMAINS, 1)
    given = GIVEN[allowed.inside(GIVEN)]
    reference = np.array([0.15, 0.45, 0.2, 0.2])
    mixtures = space_filling.designed(way, 12, given, allowed, 0, reference, concentration=2.0)
    assert mixtures.shape == (12, 4)
    assert np.array_equal(mixtures[: len(given)], given)
    assert allowed.violation(mixtures).max() <= 1e-9
    assert len(np.unique(mixtures.round(6), axis=0)) == 12
    halvings = mixtures[len(given) :, :-1] * 16
    if way == "halved" and not constraints.bundles:
        top = np.floor(allowed.upper[:-1] * 16 + 1e-9)
        ratio = np.log2(top / np.where(halvings > 0, halvings, top))
        assert np.array_equal(ratio, ratio.round())  # each is its highest, halved


def test_the_grid_of_halved_proportions_is_the_published_codes() -> None:
    """Its find_opt.py enumerates 854 candidates for these highest proportions."""
    domains = tuple(f"d{i}" for i in range(7))
    highest = (1, 1, 0.5857, 0.2588, 0.2254, 0.1779, 0.1727)
    bounds = {d: (0.0, h) for d, h in zip(domains, highest, strict=True)}
    grid = np.array(list(space_filling.halved_grid(feasible(Constraints(bounds), domains, 1))))
    assert len(np.unique(grid, axis=0)) == len(grid) == 854


def test_dirichlet_draws_gather_around_the_reference() -> None:
    allowed = feasible(Constraints(), DOMAINS, 1)
    reference = np.array([0.5, 0.3, 0.15, 0.05])
    wide, narrow = (space_filling.dirichlet(allowed, 200, reference, c, 0) for c in (2.0, 50.0))
    assert narrow.mean(axis=0) == pytest.approx(reference, abs=0.02)
    assert narrow.std(axis=0).max() < wide.std(axis=0).min()
    corner = feasible(Constraints({"d": (0.9, 1.0)}), DOMAINS, 1)
    with pytest.raises(InputError, match="draws around the reference 0 satisfy the constraints"):
        space_filling.dirichlet(corner, 5, reference, 50.0, 0)


def test_a_design_that_cannot_be_is_refused() -> None:
    fixed = feasible(Constraints(dict.fromkeys(DOMAINS, (0.25, 0.25))), DOMAINS, 1)
    with pytest.raises(InputError, match="bounds and bundles leave a single mixture"):
        space_filling.designed("spread", 4, GIVEN[1:], fixed, 0)
    few = feasible(Constraints({"a": (0.9, 1.0)}), DOMAINS, 1)
    with pytest.raises(InputError, match="the grid of halved proportions has "):
        space_filling.designed("halved", 20, GIVEN[:0], few, 0)


def test_a_design_has_no_rounding_errors_of_its_constraints() -> None:
    """A run is known by its mixture: machines that share a sweep design it to the last bit."""
    allowed = feasible(Constraints(dict.fromkeys(DOMAINS, (0.03, 0.7))), DOMAINS, 1)
    for way in ("spread", "sobol", "dirichlet"):
        mixtures = space_filling.designed(way, 12, GIVEN, allowed, 0, GIVEN[0])
        assert np.array_equal(mixtures, mixtures.round(DECIMALS))

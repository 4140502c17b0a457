"""The weights of a sum of laws: equal where nothing tells, all to one that is far better."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitting.selection import stacking


def errors(scales: list[float], mixtures: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Independent errors of laws, (K, mixtures, 3), of these sizes."""
    drawn = np.random.default_rng(seed).normal(0, 1, (len(scales), mixtures, 3))
    return drawn * np.array(scales)[:, None, None], np.arange(mixtures)


@given(
    st.lists(st.floats(1e-4, 1e2), min_size=1, max_size=6), st.integers(3, 40), st.integers(0, 99)
)
def test_weights_are_proportions(scales: list[float], mixtures: int, seed: int) -> None:
    weights = stacking.weights(*errors(scales, mixtures, seed))
    assert weights.sum(axis=0) == pytest.approx(np.ones(3))
    assert (weights >= 0).all()


def test_many_mixtures_give_the_weights_of_least_error_and_few_nearly_equal_ones() -> None:
    many = stacking.weights(*errors([1.0, 2.0, 4.0], 20_000))
    for own in many.T:
        assert own == pytest.approx(np.array([16, 4, 1]) / 21, abs=0.02)  # inverse variances
    few = stacking.weights(*errors([1.0, 1.2, 1.4], 4))
    assert few.mean(axis=1) == pytest.approx(np.full(3, 1 / 3), abs=0.16)


def test_a_domain_that_another_law_predicts_best_has_its_own_weights() -> None:
    found, mixtures = errors([1.0, 1.0], 200)
    found[0, :, 2] *= 0.2
    weights = stacking.weights(found, mixtures)
    assert weights[0, 2] > 0.9
    assert weights[0, :2] == pytest.approx(np.full(2, 0.5), abs=0.15)


@pytest.mark.parametrize("better", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("others", [[1.0, 1.0], [1.0, 1e3], [1e6, 1.0, 2.0]])
def test_a_law_that_is_far_better_has_the_weight_whatever_the_number(
    better: float, others: list[float]
) -> None:
    assert stacking.weights(*errors([better, *others], 6))[0].min() > 0.99


@pytest.mark.parametrize("worse", [1e3, 1e6, 1e9])
def test_a_law_that_is_far_worse_has_none(worse: float) -> None:
    weights = stacking.weights(*errors([1.0, 1.1, worse], 20))
    assert weights[2].max() == 0
    assert weights[:2].min() > 0.2


def test_the_sum_is_no_worse_than_its_members() -> None:
    found, mixtures = errors([1.0, 1.5, 0.8], 60)
    shared = np.random.default_rng(1).normal(0, 1, found.shape[1:])
    found = found + shared
    weights = stacking.weights(found, mixtures)
    least = (found**2).mean(axis=(1, 2)).min()
    assert (np.einsum("kv,knv->nv", weights, found) ** 2).mean() <= least

"""The next batch of runs: what it teaches, by the full Gaussian formula, and what it is worth."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from optimization.design import acquisition, plots
from optimization.design.acquisition import Ensemble
from training.record.errors import InputError

Array = np.ndarray

DOMAINS, VAL_DOMAINS, CANDIDATES = 5, 3, 120
NOISE, WEIGHTS = np.array([0.02, 0.03, 0.05]) ** 2, np.array([0.5, 0.3, 0.2])


def linear(seed: int = 0, observed: Array | None = None, scale: float = 0.1) -> Ensemble:
    """Losses a_i · x of known prior, a_i ~ N(mean, scale² I) in each domain, after runs at
    `observed` (m, M); the factors are exact, B = M."""
    rng = np.random.default_rng(seed)
    x = rng.dirichlet(np.full(DOMAINS, 0.7), CANDIDATES)
    mean = 3 + rng.normal(0, 0.1, (DOMAINS, VAL_DOMAINS))
    factors = np.empty((CANDIDATES, VAL_DOMAINS, DOMAINS))
    for i, variance in enumerate(NOISE):
        precision = np.eye(DOMAINS) / scale**2
        if observed is not None:
            precision = precision + observed.T @ observed / variance
        factors[:, i] = x @ np.linalg.cholesky(np.linalg.inv(precision))
    return Ensemble(x @ mean, factors, NOISE, WEIGHTS)


def variance_after(found: Ensemble, batch: list[int], probability: Array) -> float:
    """Σ w_i² Σ q_e Var f_i(e) given runs at a batch, by the covariances of all candidates."""
    total = 0.0
    for i, variance in enumerate(found.noise):
        covariance = found.factors[:, i] @ found.factors[:, i].T
        across = covariance[:, batch]
        seen = across[batch] + variance * np.eye(len(batch))
        left = covariance - across @ np.linalg.solve(seen, across.T)
        total += found.weights[i] ** 2 * float(probability @ np.diag(left))
    return total


def test_the_batch_teaches_more_than_any_random_one() -> None:
    rng = np.random.default_rng(1)
    found = linear(observed=rng.dirichlet(np.ones(DOMAINS), 3))
    probability, batch = (
        acquisition.probability_near_optimal(found),
        acquisition.propose(found, 4),
    )
    chosen = variance_after(found, batch, probability)
    others = [
        variance_after(found, list(rng.choice(CANDIDATES, 4, replace=False)), probability)
        for _ in range(50)
    ]
    assert chosen < min(others)
    assert len(set(batch)) == 4


def test_each_choice_is_the_best_next_one_by_the_full_formula() -> None:
    found, batch = linear(3), list[int]()
    probability = acquisition.probability_near_optimal(found)
    for wanted in acquisition.propose(found, 5, pending=[7, 30]):
        left = [i for i in range(CANDIDATES) if i not in {7, 30, *batch}]
        after = [variance_after(found, [7, 30, *batch, i], probability) for i in left]
        assert wanted == left[int(np.argmin(after))]
        batch.append(wanted)


def test_what_is_pending_or_known_is_not_asked_again() -> None:
    found = linear()
    first = acquisition.propose(found, 3)
    later = acquisition.propose(found, 3, pending=first)
    assert later == acquisition.propose(found, 6)[3:]
    mean, factors = (np.concatenate([a, a]) for a in (found.mean, found.factors))
    # each candidate twice: the twin of a pending one teaches little
    twins = Ensemble(mean, factors, NOISE / 100, WEIGHTS)
    assert not {CANDIDATES + i for i in first} & set(acquisition.propose(twins, 1, pending=first))
    x = np.random.default_rng(0).dirichlet(np.full(DOMAINS, 0.7), CANDIDATES)
    trained = np.repeat(x[first[:1]], 20, axis=0)
    apart = np.abs(x - trained[0]).sum(axis=1) / 2
    assert all(apart[i] > 0.1 for i in acquisition.propose(linear(observed=trained), 2))
    with pytest.raises(InputError, match="121 mixtures are asked for, but only 117"):
        acquisition.propose(found, 121, pending=first)


def test_of_equal_uncertainty_the_promising_are_chosen() -> None:
    """Two halves that know nothing of each other, alike but for their predicted losses."""
    half = linear()
    nothing = np.zeros_like(half.factors)
    factors = np.block([[[half.factors, nothing]], [[nothing, half.factors]]])
    for better in (0, 1):
        low, high = half.mean - 1.0, half.mean
        mean = np.concatenate([low, high] if better == 0 else [high, low])
        found = Ensemble(mean, factors, NOISE, WEIGHTS)
        assert {i // CANDIDATES for i in acquisition.propose(found, 4)} == {better}


def test_every_weighted_domain_is_learnt_not_their_sum() -> None:
    """Errors of two domains that cancel in the objective are still worth a run."""
    one = np.zeros((2, 2, 1))
    one[0, :, 0] = 0.1, -0.1  # no uncertainty in the objective
    one[1, :, 0] = 0.01, 0.01
    found = Ensemble(np.full((2, 2), 3.0), one, np.full(2, 1e-4), np.full(2, 0.5))
    assert found.deviation[0] < found.deviation[1]
    assert acquisition.propose(found, 1) == [0]


def test_a_batch_is_worth_more_the_more_it_tells() -> None:
    found = linear()
    batch = acquisition.propose(found, 8)

    def at(noise: float) -> acquisition.ExpectedImprovement:
        one = Ensemble(found.mean, found.factors, np.full(VAL_DOMAINS, noise), WEIGHTS)
        return acquisition.expected_improvement(one, batch)

    worths = [at(noise) for noise in (1e-10, 1e-4, 1e-2, 1.0, 1e6)]
    expected = [w.expected for w in worths]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] == pytest.approx(worths[0].most, rel=1e-3)
    assert 0.1 * worths[0].most < expected[2] < 0.9 * worths[0].most
    assert 0 <= expected[-1] < 1e-4 * worths[0].most
    assert (
        acquisition.expected_improvement(found, batch[:1]).expected
        < acquisition.expected_improvement(found, batch).expected
    )


def test_the_worth_of_two_candidates_is_the_closed_one() -> None:
    """One known, one unknown by s, equal means: E max(0, shift) = s² / √(s² + σ²) · φ(0)."""
    s, sigma = 0.1, 0.05
    found = Ensemble(
        np.full((2, 1), 3.0), np.array([[[0.0]], [[s]]]), np.array([sigma**2]), np.ones(1)
    )
    got = acquisition.expected_improvement(found, [1])
    assert got.expected == pytest.approx(s**2 / np.hypot(s, sigma) / np.sqrt(2 * np.pi), rel=0.08)
    assert got.most == pytest.approx(s / np.sqrt(2 * np.pi), rel=0.08)


def test_the_same_seed_gives_the_same() -> None:
    found = linear()
    assert acquisition.propose(found, 5, seed=4) == acquisition.propose(found, 5, seed=4)
    assert acquisition.expected_improvement(
        found, [1, 2], seed=4
    ) == acquisition.expected_improvement(found, [1, 2], seed=4)
    assert acquisition.expected_improvement(
        found, [1, 2], seed=4
    ) != acquisition.expected_improvement(found, [1, 2], seed=5)


class Plane:
    """A law: losses x A."""

    def __init__(self, slopes: Array) -> None:
        self.slopes = slopes

    def predict(self, mixtures: Array) -> Array:
        return mixtures @ self.slopes

    def jacobian(self, mixtures: Array) -> Array:
        raise NotImplementedError


def test_an_ensemble_and_its_noise_are_those_of_the_replicates() -> None:
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(DOMAINS), 9)
    law = Plane(rng.normal(3, 1, (DOMAINS, VAL_DOMAINS)))
    replicates = [Plane(law.slopes + rng.uniform(-0.1, 0.1, law.slopes.shape)) for _ in range(40)]
    found = acquisition.ensemble(law, replicates, x, NOISE, WEIGHTS)
    drawn = np.array([r.predict(x) for r in replicates])
    np.testing.assert_allclose(found.mean, law.predict(x))
    np.testing.assert_allclose((found.factors**2).sum(axis=2), drawn.var(axis=0), rtol=0.05)
    np.testing.assert_allclose(found.deviation, (drawn @ WEIGHTS).std(axis=0), rtol=0.05)
    astray = [*replicates, Plane(law.slopes + 50.0)]  # one without a hold counts for little
    assert acquisition.ensemble(law, astray, x, NOISE, WEIGHTS).deviation.max() < 0.1
    residual = np.diag([0.01, -0.001, 0.0])
    predictor = SimpleNamespace(
        artifact_model=SimpleNamespace(
            interval=SimpleNamespace(residual=residual), spec=SimpleNamespace(noise=())
        ),
        fitted=x,
        replicates=replicates,
    )
    noise, shown = acquisition.noise(cast(Any, predictor)), drawn.var(axis=0).mean(axis=0)
    assert noise[0] == 0.01
    np.testing.assert_allclose(noise[1:], acquisition.LEAST_NOISE * shown[1:], rtol=1e-6)
    predictor.artifact_model.spec.noise = (0.1, 0.2, 0.3)  # measured by seeds
    np.testing.assert_allclose(acquisition.noise(cast(Any, predictor)), [0.1, 0.2, 0.3])


@pytest.mark.parametrize("domains", [3, 30])
def test_the_figures_show_every_proposal_in_its_place(domains: int) -> None:
    rng, count = np.random.default_rng(0), 12
    fitted = rng.dirichlet(np.ones(domains), 20)
    names = [f"domain_{i}" for i in range(domains)]
    chosen = {
        f"proposed {i}": dict(zip(names, r, strict=True))
        for i, r in enumerate(rng.dirichlet(np.ones(domains), count))
    }
    (axis,) = plots.proposals(fitted, chosen, names).axes
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert sorted(rows) == sorted(names)
    for name, dots in zip(chosen, axis.collections[-count:], strict=True):
        assert dots.get_label() == name
        points = np.asarray(dots.get_offsets())
        for x, y in points:
            assert x == chosen[name][rows[round(y)]]
    objective, deviation = rng.normal(3, 0.1, 50), rng.uniform(0.01, 0.02, 50)
    (axis,) = plots.uncertainty(objective, deviation, range(5), list(chosen)[:5]).axes
    for i, dots in enumerate(axis.collections[-5:]):
        np.testing.assert_allclose(np.asarray(dots.get_offsets()), [(objective[i], deviation[i])])

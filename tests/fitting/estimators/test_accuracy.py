"""Accuracy over loss: recovery of a known curve, and where nothing is answered."""

import numpy as np
import pytest

from fitting.artifact import laws
from fitting.artifact.laws import accuracies
from fitting.data.histories import Guess
from fitting.estimators import accuracy

Array = np.ndarray
GUESS = Guess(chance=0.25, questions=500)
CURVE = np.array([0.9, 1.9, np.log(0.3)])


def measured(seed: int, curve: Array = CURVE) -> tuple[Array, Array, Array]:
    """Losses, accuracies and runs of 40 runs of five evaluations, with the noise of a count."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(1.8, 2.8, 40)
    losses = (ends[:, None] + np.linspace(0.8, 0, 5)).ravel()
    exact = accuracies(curve, GUESS.chance, losses)
    return losses, rng.binomial(500, exact) / 500, np.repeat(np.arange(40), 5)


def test_a_known_curve_is_recovered_and_its_interval_holds() -> None:
    beyond = np.array([1.5, 1.7, 2.2])
    truth = accuracies(CURVE, GUESS.chance, beyond)
    inside, errors = [], []
    for seed in range(30):
        curve, reason = accuracy.fit(*measured(seed), GUESS)
        assert curve is not None
        assert not reason
        low, high = curve.ends(beyond, np.zeros(3))
        again = np.random.default_rng(99 + seed).binomial(500, truth) / 500
        inside.append((low <= again) & (again <= high))
        errors.append(curve.predict(beyond) - truth)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02
    assert np.sqrt(np.mean(np.square(errors), axis=0))[-1] < 0.01
    assert 0.8 <= np.mean(inside) <= 0.99


def test_the_interval_holds_where_the_runs_show_but_the_foot_of_the_curve() -> None:
    beyond, inside = np.array([1.4]), []
    for seed, ceiling in enumerate(np.tile([0.7, 0.85, 1.0], 8)):
        truth = np.array([ceiling, 1.7, np.log(0.3)])
        curve, _ = accuracy.fit(*measured(seed, truth), GUESS)
        if curve is not None:
            low, high = curve.ends(beyond, np.zeros(1))
            inside.append(bool(low <= accuracies(truth, GUESS.chance, beyond) <= high))
    assert len(inside) > 12
    assert np.mean(inside) >= 0.75


def test_runs_that_differ_but_do_not_follow_the_loss_have_no_curve() -> None:
    answered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        losses, _, runs = measured(seed)
        noise = np.repeat(rng.normal(0, 0.03, 40), 5) + rng.normal(0, 0.01, 200)
        answered += accuracy.fit(losses, 0.35 + noise, runs, GUESS)[0] is not None
    assert answered <= 2


def test_an_uncertain_loss_widens_the_interval_by_the_slope() -> None:
    curve, _ = accuracy.fit(*measured(0), GUESS)
    assert curve is not None
    at = np.array([2.2])
    certain, uncertain = (np.diff(curve.ends(at, np.array([d])), axis=0) / 2 for d in (0.0, 0.05))
    slope = (curve.predict(at - 1e-4) - curve.predict(at + 1e-4)) / 2e-4
    added = np.sqrt(uncertain**2 - certain**2) / curve.quantile
    assert added.item() == pytest.approx(0.05 * slope.item(), rel=0.15)
    assert laws.from_json(laws.to_json(curve)).predict(at) == curve.predict(at)


@pytest.mark.parametrize(
    ("curve", "losses", "reason"),
    [
        (np.array([0.9, 0.1, np.log(0.1)]), slice(None), "are still at chance"),
        (np.array([0.5, 99.0, np.log(0.3)]), slice(None), "no dependence on the loss"),
        (np.array([0.3, 99.0, np.log(0.3)]), slice(5), "5 evaluations are too few"),
    ],
)
def test_where_the_runs_show_nothing_nothing_is_answered(
    curve: Array, losses: slice, reason: str
) -> None:
    at, right, runs = measured(3, curve)
    found, why = accuracy.fit(at[losses], right[losses], runs[losses], GUESS)
    assert found is None
    assert reason in why

"""The mathematics, by recovery: losses made from a known law, fitted, found again."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

from fitting.artifact import laws
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates, joint, least_squares, nested, published
from fitting.estimators.candidates import Candidate
from tests.support import synthetic
from tests.support.fits import TARGET
from training.record.errors import InputError

UNSEEN = synthetic.mixtures(40, seed=9)


def at(law: laws.Law, target: Target = TARGET) -> np.ndarray:
    ones = np.ones(len(UNSEEN))
    return law.predict(UNSEEN, target.n_params * ones, target.tokens * ones)


def observed(law: laws.Law, count: int = 12, **options: object) -> Observations:
    return Observations.from_tidy(synthetic.table(law, count, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [1, 2])
def test_the_exponential_solver_recovers_many_laws_at_once(terms: int) -> None:
    rng = np.random.default_rng(0)
    phi, new = rng.dirichlet(np.ones(4), 40), rng.dirichlet(np.ones(4), 50)
    floor, log_scale = rng.uniform(1, 2, 30), rng.uniform(-1, 0.5, (30, terms))
    slope = rng.uniform(-3, 1, (30, terms, 4))

    def values(f: np.ndarray, b: np.ndarray, t: np.ndarray, at: np.ndarray) -> np.ndarray:
        return f[:, None] + np.exp(b[:, :, None] + t @ at.T).sum(axis=1)

    y = values(floor, log_scale, slope, phi)
    found = least_squares.exponentials(phi, y, np.ones_like(y), np.full(30, 1e-9), terms)
    got = values(found.floor, found.log_scale, found.slope, new)
    error = np.abs(got - values(floor, log_scale, slope, new))
    assert np.quantile(error, 1.0 if terms == 1 else 0.98) < 2e-3
    assert terms > 1 or found.converged.all()
    again = least_squares.exponentials(phi, y, np.ones_like(y), np.full(30, 1e-9), found)
    assert np.abs(values(again.floor, again.log_scale, again.slope, phi) - y).max() < 2e-3


def test_a_row_of_weight_zero_is_left_out() -> None:
    rng = np.random.default_rng(1)
    phi = rng.dirichlet(np.ones(3), 12)
    y = 1 + np.exp(phi @ [-2.0, 0.5, 0.1])[None]
    spoilt = y.copy()
    spoilt[0, 3] = 100
    weights = np.ones_like(y)
    weights[0, 3] = 0
    ridge = np.array([1e-4])
    kept = least_squares.exponentials(
        np.delete(phi, 3, 0), np.delete(y, 3, 1), np.ones((1, 11)), ridge
    )
    found = least_squares.exponentials(phi, spoilt, weights, ridge)
    # b and t shift with the centre of φ, of which the left-out row is part: compare predictions
    for row in phi:
        got, want = (f.floor + np.exp(f.log_scale + f.slope @ row).sum() for f in (found, kept))
        assert got == pytest.approx(want, abs=3e-3)


@pytest.mark.parametrize("tie", ["curve", "domain", "all"])
def test_power_laws_are_found_again_however_their_exponents_are_tied(tie: str) -> None:
    rng = np.random.default_rng(3)
    group, x = np.repeat(np.arange(6), 7), np.tile(np.geomspace(0.05, 1, 7), 6)
    shape = {"curve": (6, 3), "domain": (1, 3), "all": (1, 1)}[tie]
    exponent = np.broadcast_to(rng.uniform(0.2, 0.9, shape), (6, 3))
    floor, scale = rng.uniform(1, 3, (6, 3)), rng.uniform(0.3, 1, (6, 3))
    y = floor[group] + scale[group] * x[:, None] ** -exponent[group]
    found = least_squares.power_laws(x, y, group, tie)
    assert found.exponent == pytest.approx(exponent, rel=0.02)
    assert found.floor == pytest.approx(floor, abs=0.02)
    assert found.scale == pytest.approx(scale, abs=0.02)


def test_the_huber_loss_does_not_follow_an_outlier() -> None:
    group, x = np.zeros(10, int), np.geomspace(0.05, 1, 10)
    y = (2 + 0.5 * x**-0.4)[:, None]
    y[4] += 0.3
    plain = least_squares.power_laws(x, y, group, "curve")
    robust = least_squares.power_laws(x, y, group, "curve", huber=1e-3)
    far = 3.0 ** -np.array([plain.exponent[0, 0], robust.exponent[0, 0]])
    want = 2 + 0.5 * 3.0**-0.4
    got = [f.floor[0, 0] + f.scale[0, 0] * e for f, e in zip((plain, robust), far, strict=True)]
    assert abs(got[1] - want) < 0.005 < abs(got[0] - want)


def test_the_gradient_of_the_scale_fit_is_that_of_its_cost() -> None:
    problem = joint._ScaleProblem(observed(synthetic.joint_law(g=0.1), noise=0.01), True)
    theta = np.array([-1.2, -0.7, 0.1, 0.05])
    assert check_grad(lambda t: problem.cost(t)[0], lambda t: problem.cost(t)[1], theta) < 1e-4


def rows_of(o: Observations, method: str) -> published.Rows:
    return published.rows_of(o, method, joint.fit_scales(o, shrinking=False))


@pytest.mark.parametrize("method", published.METHODS)
def test_the_jacobians_of_the_published_laws_are_their_derivatives(method: str) -> None:
    o = observed(synthetic.joint_law())
    o = replace(o, val_domains=("papers", "code", "web", "code"))  # bimix needs them among these
    rows = rows_of(o, method)
    form, start, law = published.METHODS[method]
    rng = np.random.default_rng(0)
    theta = start(rows) + rng.normal(0, 0.1, start(rows).shape)
    every = np.arange(len(theta))
    value, jacobian = form(rows, theta, every)
    for k in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, k] = 1e-6
        slope = (form(rows, theta + step, every)[0] - form(rows, theta - step, every)[0]) / 2e-6
        assert np.abs(slope - jacobian[:, :, k]).max() < 1e-6, k
    predicted = law(rows, theta).predict(o.proportions(), o.n_params, o.tokens)
    assert np.abs(predicted - value.T).max() < 1e-9


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("g", [0.0, 0.15])
def test_the_joint_law_is_recovered_beyond_the_data(power: float, g: float) -> None:
    truth = synthetic.joint_law(power=power, g=g)
    law = candidates.fit(
        observed(truth, 20), Candidate("joint", power, 1e-9, shrinking=g > 0), TARGET
    )
    assert isinstance(law, laws.JointLaw)
    assert np.abs(at(law) - at(truth)).max() < 0.02
    assert law.alpha == pytest.approx(truth.alpha, rel=0.02)
    assert law.beta == pytest.approx(truth.beta, rel=0.02)
    assert law.g == pytest.approx(truth.g, abs=0.01)


def test_exponents_of_their_own_are_found_for_each_domain() -> None:
    truth = replace(
        synthetic.joint_law(),
        alpha=np.array([0.2, 0.35, 0.5, 0.7]),
        beta=np.array([0.6, 0.5, 0.4, 0.3]),
    )
    law = candidates.fit(observed(truth), Candidate("joint", 1.0, 1e-9, tie="domain"), TARGET)
    assert isinstance(law, laws.JointLaw)
    assert law.alpha == pytest.approx(truth.alpha, rel=0.05)
    assert law.beta == pytest.approx(truth.beta, rel=0.05)
    assert np.abs(at(law) - at(truth)).max() < 0.02


def test_the_nested_pipeline_recovers_the_target() -> None:
    truth = synthetic.joint_law()
    law = candidates.fit(observed(truth), Candidate("nested", 1.0, 1e-8, tie="domain"), TARGET)
    assert isinstance(law, laws.NestedLaw)
    assert np.abs(at(law) - at(truth)).max() < 0.02
    assert law.alpha == pytest.approx(np.full((12, 4), 0.35), rel=0.02)
    assert law.beta == pytest.approx(np.full((36, 4), 0.5), rel=0.02)
    inside = Target(4e6, 4e8)
    assert np.abs(at(law, inside) - at(truth, inside)).max() < 0.02


def test_a_mixture_of_one_size_takes_the_others_size_law() -> None:
    truth = synthetic.joint_law()
    table = synthetic.table(truth)
    small_only = table["run"].str.startswith(("mix03-", "mix07-")) & (table["n_params"] > 1e6)
    observations = Observations.from_tidy(table[~small_only])
    law = candidates.fit(observations, Candidate("nested", 1.0, 1e-8, tie="domain"), TARGET)
    assert np.abs(at(law) - at(truth)).max() < 0.02


@pytest.mark.parametrize("method", published.METHODS)
def test_published_laws_are_recovered_inside_the_data(method: str) -> None:
    truth = synthetic.published_law(method)
    o = replace(observed(truth, 25), val_domains=("papers", "code", "web", "code"))
    law = candidates.fit(o, Candidate(method, 1.0, 1e-9), TARGET)
    error = at(law, Target(16e6, 8e8)) - at(truth, Target(16e6, 8e8))
    assert np.sqrt((error**2).mean()) < 0.02 < at(truth).std()


def test_the_powers_of_an_inverse_sum_are_held_to_what_all_domains_show_of_them() -> None:
    own = synthetic.published_law("shukor_additive")
    assert isinstance(own, laws.AdditiveLaw)
    truth = replace(own, power=np.full_like(own.power, 0.9))
    law = candidates.fit(observed(truth, 25), Candidate("shukor_additive", 1.0, 1e-2), TARGET)
    assert isinstance(law, laws.AdditiveLaw)
    assert np.abs(np.log(law.power / 0.9)).mean() < 0.3 < np.log(0.9 / published.START_POWER)


def test_bimix_needs_training_domains_of_the_validation_domains_names() -> None:
    with pytest.raises(InputError, match="validation domain 'news' is not a training domain"):
        candidates.fit(observed(synthetic.joint_law()), Candidate("bimix", 1.0, 1e-4), TARGET)


def test_rows_in_another_order_give_the_same_law() -> None:
    table = synthetic.table(synthetic.joint_law(), noise=0.01)
    shuffled = table.sample(frac=1, random_state=0)
    candidate = Candidate("joint", 1.0, 1e-4)
    first, second = (
        candidates.fit(Observations.from_tidy(t), candidate, TARGET) for t in (table, shuffled)
    )
    assert at(first) == pytest.approx(at(second), abs=1e-4)
    renamed = Observations.from_tidy(shuffled[[*reversed(shuffled.columns)]])
    assert renamed.domains == tuple(reversed(synthetic.DOMAINS))


@pytest.mark.parametrize("kind", [*candidates.OWN, "joint of two terms", *published.METHODS])
def test_a_law_survives_json(kind: str) -> None:
    if kind in published.METHODS:
        law = synthetic.published_law(kind)
    else:
        terms = 2 if "two" in kind else 1
        candidate = Candidate(kind.split()[0], 0.5, 1e-4, terms, tie="domain")
        law = candidates.fit(observed(synthetic.joint_law(), noise=0.01), candidate, TARGET)
    again = laws.from_json(json.loads(json.dumps(laws.to_json(law))))
    assert type(again) is type(law)
    assert np.array_equal(at(again), at(law))


def test_one_size_or_one_checkpoint_leaves_a_term_out() -> None:
    truth = synthetic.joint_law()
    here = Target(16e6, 8e8)
    one_size: dict[str, Any] = {"sizes": (16e6,)}
    one_checkpoint: dict[str, Any] = {"tokens": (8e8,)}
    for options in (one_size, one_checkpoint, {**one_size, **one_checkpoint}):
        o = observed(truth, **options)
        for candidate in (
            Candidate("joint", 1.0, 1e-8),
            Candidate("nested", 1.0, 1e-8, tie="domain"),
        ):
            law = candidates.fit(o, candidate, here)
            assert np.abs(at(law, here) - at(truth, here)).max() < 0.02


def test_the_scale_fit_has_no_negative_size_or_step_term() -> None:
    table = synthetic.table(synthetic.joint_law())
    for name in synthetic.VAL_DOMAINS:  # larger models worse: no size law describes that
        table[f"val_loss/{name}"] += 0.5 * np.log(table["n_params"] / 1e6)
    found = joint.fit_scales(Observations.from_tidy(table), shrinking=False)
    assert (found.size >= 0).all()
    assert (found.step > 0).all()


def test_nested_curves_hold_every_run() -> None:
    curves = nested.fit_curves(observed(synthetic.joint_law()), TARGET.n_params, TARGET.tokens)
    assert curves.levels.shape == (12, 4)
    assert curves.law.step_floor.shape == (36, 4)


def test_the_bootstrap_in_one_batch_is_each_draws_own_fit() -> None:
    o = observed(synthetic.joint_law(), 10, noise=0.01)
    draws = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), 3).astype(float)
    for candidate in (Candidate("joint", 1.0, 1e-3), Candidate("nested", 1.0, 1e-3, tie="domain")):
        drawn = candidates.bootstrap(o, candidate, TARGET, draws)
        alone = [candidates.bootstrap(o, candidate, TARGET, d[None])[0] for d in draws]
        for one, other in zip(drawn, alone, strict=True):
            assert at(one) == pytest.approx(at(other), abs=1e-3)
        assert np.ptp([at(law) for law in drawn], axis=0).max() > 0.005


@pytest.mark.parametrize("method", ["shukor_additive", "shukor_joint", "power_sum"])
def test_one_step_of_the_bootstrap_is_nearly_the_fit_to_the_draw(method: str) -> None:
    """Beside a fit to the mixtures as often as each was drawn."""
    o = observed(synthetic.joint_law(power=0.5), 25, noise=0.01)
    counts = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), size=6).astype(float)
    candidate = Candidate(method, 1.0, 1e-3)
    here = Target(16e6, 8e8)
    whole = at(candidates.fit(o, candidate, here), here)
    drawn = candidates.bootstrap(o, candidate, here, counts)
    moved, missed = [], []
    for law, count in zip(drawn, counts, strict=True):
        rows = np.repeat(np.arange(len(o.tokens)), count[o.mixture_of].astype(int))
        refit = at(candidates.fit(o.rows(rows), candidate, here), here)
        moved.append(refit - whole)
        missed.append(at(law, here) - refit)
    assert np.square(missed).mean() < 0.4 * np.square(moved).mean()

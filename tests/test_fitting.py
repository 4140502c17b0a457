"""The mathematics, by recovery: losses made from a known law, fitted, found again."""

import json

import numpy as np
import pytest
from scipy.optimize import check_grad

from fitting import joint, laws, nested, solve, validate
from fitting.table import Observations
from fitting.validate import Candidate, Target
from tests import synthetic
from training.errors import InputError

TARGET = Target(**synthetic.TARGET)
WEIGHTS = np.full(4, 0.25)
UNSEEN = synthetic.mixtures(40, seed=9)


def at_target(law: laws.Law) -> np.ndarray:
    ones = np.ones(len(UNSEEN))
    return law.predict(UNSEEN, TARGET.n_params * ones, TARGET.tokens * ones)


def test_the_exponential_solver_recovers_many_laws_at_once() -> None:
    rng = np.random.default_rng(0)
    phi = rng.dirichlet(np.ones(4), 25)
    floor, log_scale = rng.uniform(1, 2, 30), rng.uniform(-1, 0.5, 30)
    slope = rng.uniform(-3, 1, (30, 4))
    y = floor[:, None] + np.exp(log_scale[:, None] + slope @ phi.T)
    found = solve.exponentials(phi, y, np.ones_like(y), np.full(30, 1e-9))
    new = rng.dirichlet(np.ones(4), 50)
    want = floor[:, None] + np.exp(log_scale[:, None] + slope @ new.T)
    got = found.floor[:, None] + np.exp(found.log_scale[:, None] + found.slope @ new.T)
    assert np.abs(got - want).max() < 2e-3
    assert found.converged.all()


def test_a_row_of_weight_zero_is_left_out() -> None:
    rng = np.random.default_rng(1)
    phi = rng.dirichlet(np.ones(3), 12)
    y = 1 + np.exp(phi @ [-2.0, 0.5, 0.1])[None]
    spoilt = y.copy()
    spoilt[0, 3] = 100
    weights = np.ones_like(y)
    weights[0, 3] = 0
    ridge = np.array([1e-4])
    kept = solve.exponentials(np.delete(phi, 3, 0), np.delete(y, 3, 1), np.ones((1, 11)), ridge)
    found = solve.exponentials(phi, spoilt, weights, ridge)
    # b and t shift with the centre of φ, of which the left-out row is part: compare predictions
    for row in phi:
        got, want = (f.floor + np.exp(f.log_scale + f.slope @ row) for f in (found, kept))
        assert got == pytest.approx(want, abs=2e-3)


def test_the_jacobian_is_the_derivative_of_the_cost() -> None:
    rng = np.random.default_rng(2)
    x, z, w = rng.normal(size=(9, 3)), rng.normal(size=(1, 9)), rng.uniform(0.1, 1, (1, 9))
    penalty = rng.uniform(0, 0.1, (1, 5))

    def cost(theta: np.ndarray) -> float:
        return float(solve._linearise(theta[None], x, z, w, penalty)[0][0]) / 2

    def gradient(theta: np.ndarray) -> np.ndarray:
        _, residual, jacobian = solve._linearise(theta[None], x, z, w, penalty)
        return jacobian[0].T @ residual[0] + penalty[0] * theta

    assert check_grad(cost, gradient, rng.normal(size=5) / 3) < 1e-5


def test_a_tied_power_law_is_found_again() -> None:
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(6), 7)
    x = np.tile(np.geomspace(0.1, 1, 7), 6)
    floor, scale = rng.uniform(1, 3, 6), rng.uniform(0.1, 1, 6)
    found = solve.tied_power_law(x, floor[group] + scale[group] * x**-0.43, group)
    assert found.exponent == pytest.approx(0.43, rel=1e-3)
    assert found.floor == pytest.approx(floor, abs=2e-3)
    assert found.scale == pytest.approx(scale, abs=2e-3)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("g", [0.0, 0.15])
def test_the_joint_law_is_recovered_beyond_the_data(power: float, g: float) -> None:
    truth = synthetic.joint_law(power=power, g=g)
    observations = Observations.from_tidy(synthetic.table(truth))
    law = validate.fit(observations, Candidate("joint", power, 1e-8, g > 0), TARGET)
    assert isinstance(law, laws.JointLaw)
    assert np.abs(at_target(law) - at_target(truth)).max() < 0.02
    if not g:
        assert (law.alpha, law.beta) == pytest.approx((truth.alpha, truth.beta), rel=0.01)


def test_the_nested_pipeline_recovers_the_target() -> None:
    truth = synthetic.joint_law()
    observations = Observations.from_tidy(synthetic.table(truth))
    law = validate.fit(observations, Candidate("nested", 1.0, 1e-8), TARGET)
    assert isinstance(law, laws.NestedLaw)
    assert np.abs(at_target(law) - at_target(truth)).max() < 0.02
    assert law.alpha == pytest.approx(np.full(4, truth.alpha), rel=0.02)
    assert law.beta == pytest.approx(np.full(4, truth.beta), rel=0.02)
    ones = np.ones(len(UNSEEN))
    inside = law.predict(UNSEEN, 4e6 * ones, 4e8 * ones) - truth.predict(
        UNSEEN, 4e6 * ones, 4e8 * ones
    )
    assert np.abs(inside).max() < 0.02


def test_a_mixture_of_one_size_takes_the_others_size_law() -> None:
    truth = synthetic.joint_law()
    table = synthetic.table(truth)
    small_only = table["run"].str.startswith(("mix03-", "mix07-")) & (table["n_params"] > 1e6)
    observations = Observations.from_tidy(table[~small_only])
    law = validate.fit(observations, Candidate("nested", 1.0, 1e-8), TARGET)
    assert np.abs(at_target(law) - at_target(truth)).max() < 0.02


def test_rows_in_another_order_give_the_same_law() -> None:
    table = synthetic.table(synthetic.joint_law(), noise=0.01)
    shuffled = table.sample(frac=1, random_state=0)
    columns = [*reversed(shuffled.columns)]
    candidate = Candidate("joint", 1.0, 1e-4)
    first, second = (
        validate.fit(Observations.from_tidy(t), candidate, TARGET) for t in (table, shuffled)
    )
    assert at_target(first) == pytest.approx(at_target(second), abs=1e-6)
    renamed = Observations.from_tidy(shuffled[columns])
    assert renamed.domains == tuple(reversed(synthetic.DOMAINS))


@pytest.mark.parametrize(
    "candidate", [Candidate("joint", 0.5, 1e-4, True), Candidate("nested", 1.0, 1e-4)]
)
def test_a_law_survives_json(candidate: Candidate) -> None:
    observations = Observations.from_tidy(synthetic.table(synthetic.joint_law(), noise=0.01))
    law = validate.fit(observations, candidate, TARGET)
    again = laws.from_json(json.loads(json.dumps(laws.to_json(law))))
    assert np.array_equal(at_target(again), at_target(law))


def test_cross_validation_beats_the_mean_and_finds_the_feature() -> None:
    truth = synthetic.joint_law(power=0.5)
    observations = Observations.from_tidy(
        synthetic.table(truth, 14, noise=0.003, sizes=(5e5, 1e6, 4e6, 16e6))
    )
    result = validate.validate(observations, WEIGHTS, TARGET)
    assert result.best.method == "joint"
    assert result.best.power == 0.5
    assert result.scores.objective_mae < 0.2 * result.scores.mean_prediction_mae
    assert result.scores.spearman > 0.95
    assert result.tested is not None
    assert abs(result.tested.bias) < 0.02
    assert result.table["chosen"].iloc[0]
    assert result.table["chosen"].sum() == 1


def test_the_interval_covers_what_it_claims() -> None:
    """Fits of seeded noisy tables: the truth lies in the 90 % interval in most of them."""
    truth = synthetic.joint_law()
    inside = total = 0
    for seed in range(6):
        observations = Observations.from_tidy(
            synthetic.table(truth, 10, noise=0.01, seed=10 * seed)
        )
        result = validate.validate(observations, WEIGHTS, TARGET, ("joint",))
        law = validate.fit(observations, result.best, TARGET)
        error = np.abs((at_target(law) - at_target(truth)) @ WEIGHTS)
        inside += int((error < result.half_width).sum())
        total += len(error)
    assert inside / total > 0.8


def test_noise_without_a_law_is_told() -> None:
    table = synthetic.table(synthetic.joint_law(), 10)
    noise = np.random.default_rng(0).normal(3, 0.1, (10, len(synthetic.VAL_DOMAINS)))
    for i, name in enumerate(synthetic.VAL_DOMAINS):
        table[f"val_loss/{name}"] = noise[table["run"].str[3:5].astype(int), i]
    result = validate.validate(Observations.from_tidy(table), WEIGHTS, TARGET, ("joint",))
    assert result.scores.objective_mae > 0.5 * result.scores.mean_prediction_mae


def test_one_size_or_one_checkpoint_leaves_a_term_out() -> None:
    truth = synthetic.joint_law()
    for options in ({"sizes": (16e6,)}, {"tokens": (8e8,)}, {"sizes": (16e6,), "tokens": (8e8,)}):
        observations = Observations.from_tidy(synthetic.table(truth, **options))
        for candidate in (Candidate("joint", 1.0, 1e-8), Candidate("nested", 1.0, 1e-8)):
            law = validate.fit(observations, candidate, Target(16e6, 8e8))
            ones = np.ones(len(UNSEEN))
            got = law.predict(UNSEEN, 16e6 * ones, 8e8 * ones)
            want = truth.predict(UNSEEN, 16e6 * ones, 8e8 * ones)
            assert np.abs(got - want).max() < 0.02


def test_the_scale_fit_has_no_negative_size_or_step_term() -> None:
    table = synthetic.table(synthetic.joint_law())
    for name in synthetic.VAL_DOMAINS:  # larger models worse: no size law describes that
        table[f"val_loss/{name}"] += 0.5 * np.log(table["n_params"] / 1e6)
    found = joint.fit_scales(Observations.from_tidy(table), shrinking=False)
    assert (found.size >= 0).all()
    assert (found.step > 0).all()


def test_nested_curves_hold_every_run() -> None:
    observations = Observations.from_tidy(synthetic.table(synthetic.joint_law()))
    curves = nested.fit_curves(observations, TARGET.n_params, TARGET.tokens)
    assert curves.levels.shape == (12, 4)
    assert curves.law.step_floor.shape == (36, 4)


def test_a_bad_table_names_the_run_and_the_column() -> None:
    table = synthetic.table(synthetic.joint_law())
    missing = table.copy()
    missing.loc[7, "val_loss/code"] = np.nan
    with pytest.raises(InputError, match="mix00-4000000' has no value of 'val_loss/code' at row 7"):
        Observations.from_tidy(missing)
    off = table.copy()
    off.loc[30, "mixture/web"] += 0.1
    with pytest.raises(InputError, match=r"run 'mix02-4000000': proportions .* sum to 1"):
        Observations.from_tidy(off)
    with pytest.raises(InputError, match="no column 'tokens'"):
        Observations.from_tidy(table.drop(columns="tokens"))
    with pytest.raises(InputError, match="2 distinct mixtures were trained"):
        validate.validate(
            Observations.from_tidy(synthetic.table(synthetic.joint_law(), 2)), WEIGHTS, TARGET
        )

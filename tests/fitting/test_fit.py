"""Whether a fit tells how far it can be trusted: choice, backtests, intervals, diagnostics."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fitting import fit, plots
from fitting.artifact import laws
from fitting.artifact.laws import JointLaw
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.diagnostics import identifiability
from fitting.diagnostics.optimum import Space
from fitting.estimators.candidates import Candidate
from fitting.fit import Fit
from fitting.selection import choose
from fitting.selection.forms import Options
from tests.support import synthetic
from training.record.errors import InputError

TARGET = Target(**synthetic.TARGET)
WEIGHTS = np.full(4, 0.25)
QUICK = Options(methods=("joint",), compare=False)
FOUR_SIZES = (5e5, 1e6, 4e6, 16e6)
NINE_LENGTHS = tuple(np.geomspace(1e8, 8e8, 9).tolist())


def fitted(table: pd.DataFrame, options: Options = QUICK, **more: Any) -> Fit:
    target = more.pop("target", TARGET)
    return fit.fit(Observations.from_tidy(table), WEIGHTS, target, options, **more)


def warning_of(found: Fit, name: str) -> str:
    return next(s.warning for s in found.diagnostics if s.name == name)


@pytest.mark.slow
def test_cross_validation_beats_the_mean_and_finds_the_feature() -> None:
    table = synthetic.table(synthetic.joint_law(power=0.5), 14, noise=0.003, sizes=FOUR_SIZES)
    result = choose.choose(Observations.from_tidy(table), WEIGHTS, TARGET)
    assert result.best.method == "joint"
    powers = {m.power for m in result.stack.members if m.method == "joint"}
    assert powers <= {0.35, 0.425, 0.5, 0.6, 0.7}
    assert sum(result.stack.shares) == pytest.approx(1)
    assert result.scores.objective_mae < 0.2 * result.scores.mean_prediction_mae
    assert result.scores.spearman > 0.95
    assert abs(result.extrapolation.backtests[-1].bias) < 0.02
    assert result.candidates["chosen"].sum() == len(result.stack.members)
    compared = result.laws.set_index("law")
    assert compared.loc["stack", "chosen"]
    assert compared.loc["stack", "held_out_rmse"] < 1.1 * compared["held_out_rmse"].min()
    assert set(compared.index) == {
        *(
            "stack",
            "joint",
            "nested",
            "shukor_additive",
            "shukor_joint",
            "power_sum",
            "boosting",
            "bimix",
        )
    }
    assert compared.loc["joint", "held_out_rmse"] < compared.loc["boosting", "held_out_rmse"]
    assert "'news' is not a training domain" in compared.loc["bimix", "note"]


def test_more_than_one_exponential_is_recognised_where_there_are_many_mixtures() -> None:
    table = synthetic.table(
        synthetic.joint_law(terms=2), 120, noise=0.002, sizes=(16e6,), tokens=(8e8,)
    )
    o, here = Observations.from_tidy(table), Target(16e6, 8e8)
    assert choose.choose(o, WEIGHTS, here, QUICK).best.terms > 1
    alone = replace(QUICK, terms=1, power=1.0, ridge=1e-4)
    given = choose.choose(o, WEIGHTS, here, alone).best
    assert given == Candidate("joint", 1.0, 1e-4)


def test_the_overall_loss_alone_is_fitted_by_latent_domains() -> None:
    """Implicit aggregation: the sum over domains of one exponential each is K exponentials."""
    table = synthetic.table(synthetic.joint_law(), 150, noise=0.001, sizes=(16e6,), tokens=(8e8,))
    o = Observations.from_tidy(table)
    overall = replace(o, val_domains=("overall",), losses=(o.losses @ WEIGHTS)[:, None])
    result = choose.choose(overall, np.ones(1), Target(16e6, 8e8), QUICK)
    assert result.best.terms > 1
    assert result.scores.objective_mae < 0.1 * result.scores.mean_prediction_mae


@pytest.mark.slow
def test_the_interval_covers_what_it_claims() -> None:
    """Fits of seeded noisy tables: the truth lies in the 90 % interval in about that many."""
    truth = synthetic.joint_law()
    unseen = synthetic.mixtures(40, seed=9)
    covered: dict[str, list[float]] = {"inside": [], "beyond": []}
    for seed in range(8):
        noise = 0.01 * np.random.default_rng(seed).standard_normal((10, 4))  # of each mixture
        table = synthetic.table(truth, 10, noise=0.003, seed=10 * seed, sizes=FOUR_SIZES)
        for v, name in enumerate(synthetic.VAL_DOMAINS):
            table[f"val_loss/{name}"] += noise[table["run"].str[3:5].astype(int), v]
        found = fitted(table)
        for where, at in (("inside", Target(16e6, 8e8)), ("beyond", TARGET)):
            scale = np.full(40, at.n_params), np.full(40, at.tokens)
            error = (found.law.predict(unseen, *scale) - truth.predict(unseen, *scale)) @ WEIGHTS
            width = found.interval.half_width(WEIGHTS, unseen, *scale)
            covered[where].append(float((np.abs(error) < width).mean()))
    assert np.mean(covered["inside"]) > 0.85
    assert np.mean(covered["beyond"]) > 0.85


def test_the_interval_widens_away_from_the_data_and_beyond_it() -> None:
    found = fitted(synthetic.table(synthetic.joint_law(), 10, noise=0.01, sizes=FOUR_SIZES))
    middle, corner = np.full((1, 3), 1 / 3), np.array([[0.0, 0.0, 1.0]])
    here, there = ((np.array([n]), np.array([d])) for n, d in ((16e6, 8e8), (64e6, 3.2e9)))
    widths = [
        found.interval.half_width(WEIGHTS, mixture, *scale)[0]
        for mixture, scale in ((middle, here), (corner, here), (middle, there))
    ]
    assert widths[0] < widths[1]
    assert widths[0] < widths[2]
    again = laws.from_json(json.loads(json.dumps(laws.to_json(found.interval))))
    assert again.half_width(WEIGHTS, corner, *here) == pytest.approx(widths[1])


def test_noise_without_a_law_is_told() -> None:
    table = synthetic.table(synthetic.joint_law(), 10)
    noise = np.random.default_rng(0).normal(3, 0.1, (10, len(synthetic.VAL_DOMAINS)))
    for i, name in enumerate(synthetic.VAL_DOMAINS):
        table[f"val_loss/{name}"] = noise[table["run"].str[3:5].astype(int), i]
    found = fitted(table)
    assert "little better than their mean" in warning_of(found, "mixing_error_against_mean")
    good = fitted(synthetic.table(synthetic.joint_law(), 10, noise=0.002))
    assert not warning_of(good, "mixing_error_against_mean")


@pytest.mark.slow
def test_start_up_transients_are_recognised_and_left_out() -> None:
    table = synthetic.table(
        synthetic.joint_law(), noise=0.002, sizes=FOUR_SIZES, tokens=NINE_LENGTHS
    )
    assert fitted(table).transient == ""
    spoilt = table.copy()
    early = spoilt["tokens"] < 1.6e8  # three of nine: losses still above any law
    for name in synthetic.VAL_DOMAINS:
        spoilt.loc[early, f"val_loss/{name}"] += 0.5 * (2e8 / spoilt["tokens"][early]) ** 2
    found = fitted(spoilt)
    assert found.transient.startswith(f"{early.sum()} evaluations before")
    clean = fitted(table)
    assert isinstance(found.law, JointLaw)
    assert isinstance(clean.law, JointLaw)
    assert found.law.beta == pytest.approx(clean.law.beta, rel=0.2)
    kept = fitted(spoilt, keep_transients=True)
    assert kept.transient == ""
    assert len(kept.observations.tokens) == len(table)


def test_a_learning_rate_that_decayed_within_the_steps_is_told() -> None:
    table = synthetic.table(
        synthetic.joint_law(), noise=0.002, sizes=FOUR_SIZES, tokens=NINE_LENGTHS
    )
    late = (table["tokens"] - 4e8).clip(lower=0) / 4e8
    for name in synthetic.VAL_DOMAINS:
        table[f"val_loss/{name}"] -= 0.15 * late
    found = fitted(table)
    assert "if the learning rate decays" in warning_of(found, "backtest_steps")
    assert found.half_width(TARGET) > found.half_width(Target(16e6, 8e8))


@pytest.mark.slow
def test_a_best_mixture_far_from_every_sampled_one_is_told() -> None:
    table = synthetic.table(synthetic.joint_law(), 40, noise=0.001)
    few = table["mixture/web"] > 0.6  # all sampled in one corner, the best elsewhere
    assert "bound the proportions" in warning_of(fitted(table[few]), "optimum_distance")
    assert not warning_of(fitted(table), "optimum_distance")
    bounded = fitted(table[few], space=Space(np.array([0.6, 0.0, 0.0]), np.ones(3), np.eye(3)))
    assert bounded.best.mixture[0] >= 0.6 - 1e-9


def test_a_best_mixture_that_moves_with_size_is_told() -> None:
    truth, other = synthetic.joint_law(), synthetic.joint_law()
    other = replace(other, slope=other.slope[:, :, ::-1], floor=other.floor)
    large = synthetic.table(truth, 14, noise=0.001, sizes=(4e6, 16e6))
    small = synthetic.table(other, 14, noise=0.001, sizes=(1e6,))
    weights = np.array([0.0, 0.0, 1.0, 0.0])
    o = Observations.from_tidy(pd.concat([large, small], ignore_index=True))
    found = fit.fit(o, weights, Target(16e6, 8e8), QUICK)
    assert [best.n_params for best in found.by_size] == [1e6, 4e6, 16e6]
    moves = float(np.abs(found.by_size[0].mixture - found.best.mixture).sum() / 2)
    assert moves > 0.2
    assert next(s.value for s in found.diagnostics if s.name == "optimum_moves") == moves
    steady = fit.fit(Observations.from_tidy(large), weights, Target(16e6, 8e8), QUICK)
    assert not warning_of(steady, "optimum_moves")


def test_what_the_data_cannot_tell_is_said() -> None:
    truth = synthetic.joint_law()
    two = Observations.from_tidy(synthetic.table(truth, sizes=(1e6, 16e6), tokens=TWO))
    said = "\n".join(identifiability.unidentified(two, TARGET))
    assert "2 sizes for the three parameters of the size law" in said
    assert "2 checkpoints per run" in said
    assert not identifiability.unidentified(two, Target(16e6, 8e8))
    fixed = synthetic.table(truth)
    rest = 1 - fixed["mixture/papers"]
    fixed["mixture/web"] *= 0.8 / rest
    fixed["mixture/code"] *= 0.8 / rest
    fixed["mixture/papers"] = 0.2
    constant = Observations.from_tidy(fixed)
    assert identifiability.constant_domains(constant) == ["papers"]
    assert (
        "'papers' has the proportion 0.2 in every mixture"
        in identifiability.unidentified(constant, TARGET)[0]
    )
    few = Observations.from_tidy(synthetic.table(truth, 3))
    assert "3 mixtures for the 4 parameters" in identifiability.unidentified(few, TARGET)[0]


TWO = (4e8, 8e8)


def test_a_target_that_no_law_reaches_is_refused() -> None:
    one = synthetic.table(synthetic.joint_law(), sizes=(16e6,))
    with pytest.raises(InputError, match="n_params: the target has 64,000,000, every run 16,000"):
        fitted(one)
    assert fitted(one, target=Target(16e6, 3.2e9)).choice.best.method == "joint"
    with pytest.raises(InputError, match="2 distinct mixtures were trained"):
        fitted(synthetic.table(synthetic.joint_law(), 2))


def test_runs_that_all_differ_in_scale_are_fitted_too() -> None:
    """No two runs of one size or length, as random designs have them."""
    rng = np.random.default_rng(0)
    truth, mixtures = synthetic.joint_law(), synthetic.mixtures(60)
    tables = [
        synthetic.table(truth, 60, noise=0.003, sizes=(n,), tokens=(0.25 * d, 0.5 * d, d))
        for n, d in zip(rng.uniform(1e6, 16e6, 60), rng.uniform(4e8, 8e8, 60), strict=True)
    ]
    own = [t[t["run"].str.startswith(f"mix{i:02d}-")] for i, t in enumerate(tables)]
    found = fitted(pd.concat(own, ignore_index=True))
    assert len(np.unique(found.observations.n_params)) == 60
    assert found.choice.scores.objective_mae < 0.01
    ones = np.ones(60)
    error = found.law.predict(mixtures, 16e6 * ones, 8e8 * ones) - truth.predict(
        mixtures, 16e6 * ones, 8e8 * ones
    )
    assert np.abs(error @ WEIGHTS).max() < 0.02
    assert plots.step_curves(found.observations, found.law, WEIGHTS, (64e6, 3.2e9)) is not None
    assert plots.size_curves(found.observations, found.law, WEIGHTS, (64e6, 3.2e9)) is not None


@pytest.mark.parametrize("domains", [2, 30])
def test_from_five_runs_of_two_domains_to_many_of_thirty(domains: int) -> None:
    rng = np.random.default_rng(0)
    count = 5 if domains == 2 else 300
    mixtures = rng.dirichlet(np.full(domains, 0.7), count)
    slope = rng.uniform(-2, 0, (2, domains))
    table = pd.DataFrame(mixtures, columns=[f"mixture/d{j}" for j in range(domains)])
    table["run"] = [f"run{i}" for i in range(count)]
    table["n_params"], table["tokens"], table["step"] = 1e6, 1e9, 1000
    for v in range(2):
        table[f"val_loss/v{v}"] = 2 + np.exp(mixtures**0.5 @ slope[v])
    o = Observations.from_tidy(table)
    found = fit.fit(o, np.full(2, 0.5), Target(1e6, 1e9), QUICK)
    scores = found.choice.scores
    assert scores.objective_mae < 0.5 * scores.mean_prediction_mae

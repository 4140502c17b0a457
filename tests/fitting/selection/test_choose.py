"""The choice of a law: the form that made the losses is found."""

from dataclasses import replace

import numpy as np
import pytest

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators.candidates import Candidate
from fitting.selection import choose
from fitting.selection.forms import FormSearch, Options
from tests.support import synthetic
from tests.support.fits import FOUR_SIZES, QUICK, TARGET, WEIGHTS


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
    assert compared.loc["stack", "held_out_rmse"] < 1.2 * compared["held_out_rmse"].min()
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
    members = [str(m) for m in result.stack.members]
    assert all(any(m in form for form in compared["form"].dropna().iloc[1:]) for m in members)


def test_more_than_one_exponential_is_recognised_where_there_are_many_mixtures() -> None:
    table = synthetic.table(
        synthetic.joint_law(terms=2), 120, noise=0.002, sizes=(16e6,), tokens=(8e8,)
    )
    o, here = Observations.from_tidy(table), Target(16e6, 8e8)
    assert choose.choose(o, WEIGHTS, here, QUICK).best.terms > 1
    alone = replace(QUICK, terms=1, power=1.0, ridge=1e-4)
    given = choose.choose(o, WEIGHTS, here, alone).best
    assert given == Candidate("joint", 1.0, 1e-4)


@pytest.mark.parametrize(
    ("noise", "least", "most"), [(0.0, 1e-4, 1e-2), (0.1, 1e-3, 1.0)], ids=["exact", "noisy"]
)
def test_weaker_ridges_are_tried_where_no_stronger_one_is_preferred(
    noise: float, least: float, most: float
) -> None:
    law = synthetic.published_law("shukor_additive")
    table = synthetic.table(law, 24, noise=noise, sizes=(16e6,), tokens=(8e8,))
    options = Options(methods=("shukor_additive",), compare=False)
    search = FormSearch(Observations.from_tidy(table), WEIGHTS, Target(16e6, 8e8), options, seed=0)
    search.forward("shukor_additive", options)
    ridges = [held.candidate.ridge for held in search.tried]
    assert min(ridges) == pytest.approx(least)
    assert 1e-3 < max(ridges) <= most * 1.001


def test_the_overall_loss_alone_is_fitted_by_latent_domains() -> None:
    """Implicit aggregation: the sum over domains of one exponential each is K exponentials."""
    table = synthetic.table(synthetic.joint_law(), 150, noise=0.001, sizes=(16e6,), tokens=(8e8,))
    o = Observations.from_tidy(table)
    overall = replace(o, val_domains=("overall",), losses=(o.losses @ WEIGHTS)[:, None])
    result = choose.choose(overall, np.ones(1), Target(16e6, 8e8), QUICK)
    assert result.best.terms > 1
    assert result.scores.objective_mae < 0.1 * result.scores.mean_prediction_mae

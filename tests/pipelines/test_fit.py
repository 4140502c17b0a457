"""`fit`: what its parameters choose, what it leaves out, and what it says of that."""

import re

import mlflow
import numpy as np
import pandas as pd
import pytest

from fitting.selection.forms import Options
from optimization.domain import predictor as predictors
from pipelines import fit, optimize
from pipelines.command.table import read
from pipelines.runs.fitted_runs import Checkpoints
from pipelines.study import search_problem
from tests.support import synthetic
from tests.support.logged_runs import fit_table, log_runs
from tests.support.synthetic import MIXTURE
from training.record import keys
from training.record.errors import InputError


@pytest.mark.slow
def test_the_sweep_above_the_runs_names_the_target_and_the_weights(store: str) -> None:
    assert store
    purpose = {
        "target/n_params": "64000000",
        "target/tokens": "3200000000",
        **{f"weight/{d}": w for d, w in zip(synthetic.VAL_DOMAINS, "4211", strict=True)},
        **{f"default_mixture/{d}": "0.25" for d in synthetic.DOMAINS},
    }
    log_runs(synthetic.table(synthetic.joint_law(), 6), purpose)
    done = fit_table(pd.DataFrame(), "0")
    assert (done.fit.target.n_params, done.fit.target.tokens) == (64e6, 3.2e9)
    metadata = mlflow.pyfunc.load_model(done.registered.uri).metadata.metadata
    assert metadata["weights"] == pytest.approx(
        dict(zip(synthetic.VAL_DOMAINS, (0.5, 0.25, 0.125, 0.125), strict=True))
    )
    assert metadata["default_mixture"]["web"] == 0.25


@pytest.mark.slow
def test_a_fit_without_some_losses_says_what_it_left_out(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), noise=0.002)
    table.loc[[3, 40], "val_loss/code"] = np.nan
    done = fit_table(table, checkpoints=Checkpoints(max_step=7000))
    said = capsys.readouterr().out
    assert "36 evaluations outside steps 0 to 7000 left out" in said
    assert "1 evaluations left out: they have no loss of code" in said
    assert len(done.fit.observations.tokens) == len(table) - 37


@pytest.mark.slow
def test_an_implicit_fit_predicts_the_weighted_loss_alone(store: str) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), 20, noise=0.002)
    weights = dict(zip(synthetic.VAL_DOMAINS, (4.0, 2.0, 1.0, 1.0), strict=True))
    done = fit_table(table, weights=weights, implicit=True, target=dict(synthetic.TARGET))
    answer = mlflow.pyfunc.load_model(done.registered.uri).predict(pd.DataFrame([MIXTURE]))
    truth = synthetic.joint_law().predict(
        np.array([[MIXTURE[f"mixture/{d}"] for d in synthetic.DOMAINS]]),
        np.array([64e6]),
        np.array([3.2e9]),
    )[0]
    want = float(np.average(truth, weights=list(weights.values())))
    assert answer["objective"][0] == pytest.approx(want, abs=0.02)
    assert answer["val_loss/objective"][0] == answer["objective"][0]


@pytest.mark.slow
def test_a_domain_that_never_varied_is_held_by_every_search(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), noise=0.002)
    rest = 1 - table["mixture/papers"]
    table["mixture/web"] *= 0.8 / rest
    table["mixture/code"] *= 0.8 / rest
    table["mixture/papers"] = 0.2
    done = fit_table(table, target=dict(synthetic.TARGET))
    assert "'papers' has the proportion 0.2 in every mixture" in capsys.readouterr().out
    assert done.fit.best.mixture[synthetic.DOMAINS.index("papers")] == pytest.approx(0.2)
    with mlflow.start_run():
        predictor = predictors.load(done.registered.uri)
        found = optimize.optimize(predictor, search_problem.of_predictor(predictor))
    assert found.best["papers"] == pytest.approx(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nested", "shukor_joint", "power_sum"])
def test_any_law_can_be_chosen_and_registered(method: str, store: str) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), noise=0.002)
    experiment = log_runs(table)
    with mlflow.start_run(tags={keys.STAGE: keys.FIT}):
        done = fit.fit(
            [experiment],
            "",
            "mixture-predictor",
            Options((method,), compare=False),
            dict(synthetic.TARGET),
        )
    assert done.fit.choice.best.method == method
    answer = mlflow.pyfunc.load_model(done.registered.uri).predict(pd.DataFrame([MIXTURE]))
    assert (answer["objective_low"] < answer["objective"]).all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "magic"}, "method: 'magic'; it is auto, joint, nested, bimix"),
        ({"tie": "curve", "method": "joint"}, "tie: 'curve'; method joint takes all, domain"),
        ({"ridge": "-1"}, "ridge: '-1'; it must be >= 0"),
        ({"terms": "2", "huber": "1"}, "terms, huber: no law of method auto takes all of them"),
        (
            {"method": "bimix", "power": "1"},
            "power: no law of method bimix takes all of them: bimix",
        ),
        ({"power": "big"}, "power: 'big' is not a number"),
        ({"shrinking": "perhaps"}, "shrinking: 'perhaps' is neither true nor false"),
        ({"terms": "0"}, "terms: '0' is not an integer from 1"),
    ],
)
def test_a_wrong_choice_of_the_law_is_refused(choice: dict[str, str], message: str) -> None:
    def options(choice: dict[str, str]) -> Options:
        return fit.law_options(read(fit.Parameters, choice))

    with pytest.raises(InputError, match=re.escape(message)):
        options(choice)
    assert options({"terms": "2"}).methods == ("joint",)
    assert options({"tie": "curve"}).methods == ("nested",)

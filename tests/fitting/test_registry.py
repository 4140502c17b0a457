"""Versions of a predictor: which is the champion."""

import mlflow
import pandas as pd
import pytest

from tests.support import synthetic
from tests.support.logged_runs import fit_table, fit_truth, log_runs


@pytest.mark.slow
def test_the_champion_changes_only_for_the_same_purpose_and_no_worse(store: str) -> None:
    assert store
    fitted = fit_truth()
    client = mlflow.MlflowClient()

    def champion() -> str:
        return str(client.get_model_version_by_alias("mixture-predictor", "champion").version)

    assert (fitted.registered.alias, champion()) == ("champion", "1")
    noisy = synthetic.table(synthetic.joint_law(), noise=0.05, seed=5)
    worse = fit_table(noisy, _new_experiment("noisy", noisy), target=dict(synthetic.TARGET))
    assert (worse.registered.alias, champion()) == ("challenger", "1")
    assert "whose cross-validated error" in worse.registered.reason
    other = fit_table(noisy, "0", target={"n_params": 1e9, "tokens": 1e11})
    assert (other.registered.alias, champion()) == ("challenger", "1")
    assert "fitted for another target" in other.registered.reason
    same = fit_table(noisy, "0", target=dict(synthetic.TARGET))
    assert (same.registered.alias, champion()) == ("champion", same.registered.version)
    assert client.get_model_version_by_alias("mixture-predictor", "challenger").version == 3


def _new_experiment(name: str, table: pd.DataFrame) -> str:
    mlflow.set_experiment(name)
    experiment = log_runs(table)
    mlflow.set_experiment(experiment_id="0")
    return experiment

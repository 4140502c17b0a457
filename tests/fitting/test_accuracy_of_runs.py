"""Accuracies from a table of runs to a registered predictor, as `mlflow run` does it."""

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from fitting.artifact.laws import accuracies
from tests.support import synthetic
from tests.support.commands import ROOT
from training.record import keys

MIXTURES = ((0.2, 0.3, 0.5), (0.6, 0.2, 0.2), (0.1, 0.8, 0.1))


def mlflow_run(entry: str, **parameters: object) -> str:
    options = [f"-P{key}={value}" for key, value in parameters.items()]
    start = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry]
    done = subprocess.run(
        [*start, "--env-manager", "local", *options], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_accuracy_of_a_task_is_predicted_at_the_target(store: str, tmp_path: Path) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), 12, noise=0.002)
    task = synthetic.VAL_DOMAINS[0]
    losses = table[keys.VAL_LOSS + task].to_numpy(float)
    middle = np.quantile(losses, 0.3)
    curve = np.array([0.9, middle, np.log(0.25)])
    rng = np.random.default_rng(0)
    right = rng.binomial(1000, accuracies(curve, 0.25, losses)) / 1000
    of_task = {f"accuracy/{task}": right, f"chance/{task}": 0.25, f"questions/{task}": 1000}
    table.assign(**of_task).to_csv(tmp_path / "runs.csv", index=False)
    mlflow_run("import", source=tmp_path / "runs.csv", format="tidy")
    target = {"n_params": int(synthetic.TARGET["n_params"]), "tokens": 3_200_000_000}
    said = mlflow_run("fit", compare="false", **target)
    assert f"accuracy of {task}: " in said
    assert "at the target, on the best mixture, " in said

    model = mlflow.pyfunc.load_model("models:/mixture-predictor/1")
    rows = pd.DataFrame([dict(zip(synthetic.MIXTURE, m, strict=True)) for m in MIXTURES])
    answer = model.predict(rows)
    truth = accuracies(curve, 0.25, answer[keys.VAL_LOSS + task].to_numpy())
    assert answer[f"accuracy/{task}"].to_numpy() == pytest.approx(truth, abs=0.04)
    assert (answer[f"accuracy_low/{task}"] <= truth).all()
    assert (answer[f"accuracy_high/{task}"] >= truth).all()
    (fit,) = mlflow.search_runs(filter_string="tags.stage = 'fit'", output_format="list")
    names = {f.path for f in mlflow.MlflowClient().list_artifacts(fit.info.run_id, "figures")}
    assert "figures/accuracy.png" in names
    raw = mlflow.artifacts.load_dict(f"runs:/{fit.info.run_id}/accuracies.json")
    (row,) = (dict(zip(raw["columns"], values, strict=True)) for values in raw["data"])
    assert row["middle"] == pytest.approx(middle, abs=0.1)

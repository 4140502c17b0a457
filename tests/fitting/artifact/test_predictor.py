"""The registered predictor: contract of its artifact, input, output, run and errors."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from optimization.domain import objective
from optimization.domain import predictor as predictors
from optimization.domain.differences import Differences
from pipelines import fit
from tests.support import synthetic
from tests.support.logged_runs import fit_table, fit_truth
from tests.support.stores import empty_store
from tests.support.synthetic import MIXTURE
from training.record import keys
from training.record.version import version


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fit.RegisteredFit]:
    """A fit of noisy runs of a known law, registered; no test changes its store."""
    with empty_store(tmp_path_factory.mktemp("fitted")):
        yield fit_truth()


@pytest.mark.slow
def test_the_answer_has_the_contract_columns_and_the_truth(fitted: fit.RegisteredFit) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    rows = pd.DataFrame([MIXTURE, {**MIXTURE, "mixture/web": 0.7, "mixture/papers": 0.0}])
    answer = model.predict(rows)
    losses = [keys.VAL_LOSS + d for d in synthetic.VAL_DOMAINS]
    assert list(answer) == [*losses, "objective", "objective_low", "objective_high", "distance"]
    truth = synthetic.joint_law().predict(
        rows.to_numpy(), np.full(2, synthetic.TARGET["n_params"]), np.full(2, 3.2e9)
    )
    assert answer[losses].to_numpy() == pytest.approx(truth, abs=0.03)
    assert answer["objective"].to_numpy() == pytest.approx(truth.mean(axis=1), abs=0.02)
    assert (answer["objective_low"] < answer["objective"]).all()
    assert (answer["objective_high"] > answer["objective"]).all()
    elsewhere = model.predict(rows.assign(n_params=4_000_000, tokens=400_000_000))
    assert (elsewhere["objective"] > answer["objective"]).all()
    fitted_mixture = synthetic.mixtures(12)[3]
    known = model.predict(pd.DataFrame([dict(zip(MIXTURE, fitted_mixture, strict=True))]))
    assert known["distance"].iloc[0] == pytest.approx(0, abs=1e-9)


def test_rounding_is_divided_out_and_whole_numbers_are_numbers(fitted: fit.RegisteredFit) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    exact = model.predict(pd.DataFrame([{**MIXTURE}]))
    rounded = model.predict(pd.DataFrame([{**MIXTURE, "mixture/web": 0.5004}]))
    assert rounded["objective"].iloc[0] == pytest.approx(exact["objective"].iloc[0], abs=1e-3)
    corner = model.predict(pd.DataFrame([dict(zip(MIXTURE, (1, 0, 0), strict=True))]))
    assert np.isfinite(corner["objective"].iloc[0])


def download(fitted: fit.RegisteredFit, tmp_path: Path) -> Path:
    """A copy of the registered model's folder."""
    uri, copy = fitted.registered.uri, tmp_path / "copy"
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(copy)))


@pytest.mark.slow
def test_the_artifact_holds_no_pickle_and_runs_without_torch(
    fitted: fit.RegisteredFit, tmp_path: Path
) -> None:
    folder = download(fitted, tmp_path)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".cloudpickle", ".pt", ".bin"))]
    for name in names:
        assert not (folder / name).read_bytes().startswith(b"\x80"), name
    requirements = (folder / "requirements.txt").read_text()
    assert not re.search("torch|deepspeed|transformers", requirements)
    script = f"""
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        banned = "torch deepspeed transformers datasets optuna scipy fitting training".split()
        if name.split(".")[0] in banned:
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model({str(folder)!r})
print(model.predict(pd.DataFrame([{MIXTURE!r}]))["objective"].iloc[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    here = mlflow.pyfunc.load_model(fitted.registered.uri).predict(pd.DataFrame([MIXTURE]))
    assert float(done.stdout.split()[-1]) == pytest.approx(here["objective"].iloc[0])


def test_each_version_runs_its_own_code(fitted: fit.RegisteredFit, tmp_path: Path) -> None:
    folder = download(fitted, tmp_path)
    code = next(folder.rglob("laws.py"))
    before = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame([MIXTURE]))
    code.write_text(code.read_text().replace("mixing * shrink", "1 + mixing * shrink"))
    after = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame([MIXTURE]))
    live = mlflow.pyfunc.load_model(fitted.registered.uri).predict(pd.DataFrame([MIXTURE]))
    assert after["objective"].iloc[0] == pytest.approx(before["objective"].iloc[0] + 1)
    assert live["objective"].iloc[0] == pytest.approx(before["objective"].iloc[0])


def test_the_fit_run_shows_what_it_found(fitted: fit.RegisteredFit) -> None:
    client = mlflow.MlflowClient()
    run = client.search_runs(["0"], f"tags.{keys.STAGE} = '{keys.FIT}'")[0]
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id, "figures")}
    curves = {"loss_over_tokens", "loss_over_size", "optimum_by_size"}
    wanted = {"predicted_against_observed", "interactions", "cross_validation", "laws", *curves}
    assert artifacts == {f"figures/{name}.png" for name in wanted}
    tables = {a.path for a in client.list_artifacts(run.info.run_id)}
    names = {"candidates", "laws", "held_out_predictions", "optimum_by_size"}
    assert {f"{name}.json" for name in names} <= tables
    assert run.data.metrics["cv/objective_mae"] == fitted.fit.choice.scores.objective_mae
    assert {"cv/spearman", "cv/mean_prediction_mae", "half_width"} <= set(run.data.metrics)
    for one in fitted.fit.diagnostics:
        assert run.data.metrics[f"diagnostic/{one.name}"] == one.value
        assert run.data.tags[f"diagnostic/{one.name}"] == (one.warning or "ok")
    assert run.inputs.dataset_inputs[0].dataset.name == "proxy-runs"
    registered = client.get_model_version("mixture-predictor", fitted.registered.version)
    assert registered.tags["project_version"] == version()


@pytest.mark.slow
def test_a_scale_that_all_runs_share_is_the_only_one_asked(store: str) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), sizes=(16e6,))
    done = fit_table(table, target={"tokens": 3.2e9})
    model = mlflow.pyfunc.load_model(done.registered.uri)
    assert np.isfinite(model.predict(pd.DataFrame([MIXTURE]))["objective"][0])
    with pytest.raises(MlflowException, match=r"row 0, column 'n_params': 6.4e\+07; every fitted"):
        model.predict(pd.DataFrame([{**MIXTURE, "n_params": 64e6}]))


def test_a_difference_is_as_certain_as_a_search_says_and_more_than_either_loss(
    fitted: fit.RegisteredFit,
) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    reference = {"web": 0.4, "code": 0.4, "papers": 0.2}
    beside = {keys.MIXTURE + domain: share for domain, share in reference.items()}
    one, other = (row for _, row in model.predict(pd.DataFrame([MIXTURE, beside])).iterrows())
    params = {"reference": reference}
    answer = model.predict(pd.DataFrame([MIXTURE, beside]), params=params)
    first, same = answer.to_dict("records")
    assert first["difference"] == pytest.approx(one["objective"] - other["objective"])
    half = first["difference_high"] - first["difference"]
    assert 0 < 2 * half < 0.7 * (one["objective_high"] - one["objective_low"])
    ends = [same["difference_low"], same["difference"], same["difference_high"]]
    assert ends == pytest.approx([0, 0, 0], abs=1e-12)
    loaded = predictors.load(fitted.registered.uri)
    weighted = objective.weighted(loaded, loaded.weights)
    base = np.array([reference[domain] for domain in loaded.domains])
    differences = Differences.of(loaded, weighted, base)
    mixture = np.array([[MIXTURE[keys.MIXTURE + domain] for domain in loaded.domains]])
    assert half == pytest.approx(differences.half_width(mixture)[0])


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ({"web": 0.5, "cod": 0.5}, "'cod'"),
        ({"web": 0.5, "code": 0.4}, "'reference': columns .*the proportions sum to 0.9"),
        ({"web": 1.5, "code": -0.5}, "'reference': column 'code': -0.5 must not be neg"),
    ],
)
def test_a_reference_that_is_no_mixture_is_refused(
    fitted: fit.RegisteredFit, reference: dict[str, float], why: str
) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    with pytest.raises(MlflowException, match=why):
        model.predict(pd.DataFrame([MIXTURE]), params={"reference": reference})

"""The registered predictor: contract of its artifact, input, output, aliases and errors."""

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

from fitting.data import histories
from fitting.selection.forms import Options
from optimization.domain import objective
from optimization.domain import predictor as predictors
from optimization.domain.differences import Differences
from pipelines import fit, optimize
from pipelines.command.table import read
from pipelines.runs.fitted_runs import Checkpoints
from pipelines.study import search_problem
from tests.support import synthetic
from tests.support.logged_runs import fit_table, fit_truth, log_runs
from tests.support.stores import empty_store
from training.record import keys
from training.record.errors import InputError
from training.record.version import version

MIXTURE = {"mixture/web": 0.5, "mixture/code": 0.3, "mixture/papers": 0.2}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fit.Fitted]:
    """A fit of noisy runs of a known law, registered; no test changes its store."""
    with empty_store(tmp_path_factory.mktemp("fitted")):
        yield fit_truth()


@pytest.mark.slow
def test_pulled_histories_are_the_table_that_was_logged(store: str) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), 4)
    experiment = log_runs(table)
    with mlflow.start_run(run_name="crashed", tags={keys.STAGE: keys.PROXY}):
        mlflow.log_params(MIXTURE)
    client = mlflow.MlflowClient()
    plain = client.search_runs([experiment], "attributes.run_name = 'mix00-1000000'")[0]
    for key in list(plain.data.tags):
        if key.startswith(keys.HISTORY):  # a foreign run: metrics alone
            client.delete_tag(plain.info.run_id, key)
    for row in table[table["run"] == "mix00-1000000"].to_dict("records"):
        for key, value in row.items():
            if key.startswith(keys.VAL_LOSS) or key == keys.TOKENS:
                client.log_metric(plain.info.run_id, key, value, step=int(row["step"]))
    pulled = histories.pull([experiment])
    assert pulled.left_out == {"crashed": "not marked complete"}
    assert len(pulled.parents) == 1
    names = {r.info.run_id: r.info.run_name for r in client.search_runs([experiment])}
    got = pulled.table.assign(run=pulled.table["run"].map(names))
    order = ["run", "tokens"]
    pd.testing.assert_frame_equal(
        got[table.columns].sort_values(order, ignore_index=True),
        table.sort_values(order, ignore_index=True),
        check_dtype=False,
        rtol=1e-8,
    )


@pytest.mark.slow
def test_runs_that_cannot_be_fitted_are_left_out_by_name(store: str) -> None:
    assert store
    experiment = log_runs(synthetic.table(synthetic.joint_law(), 4))
    client = mlflow.MlflowClient()
    one = client.search_runs([experiment], "attributes.run_name = 'mix00-1000000'")[0]
    client.set_tag(one.info.run_id, keys.FINGERPRINT, "f1")
    tags = {k: v for k, v in one.data.tags.items() if k.startswith(keys.HISTORY)}
    tags |= {keys.STAGE: keys.PROXY, keys.COMPLETE: "true"}
    for name, change, more in (
        ("a copy", {}, {keys.FINGERPRINT: "f1"}),
        ("words", {"mixture/web": "abc"}, {}),
        ("too much", {"mixture/web": "0.9"}, {}),
        ("no number", {"mixture/web": "nan"}, {}),
    ):
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags={**tags, **more}):
            mlflow.log_params({**one.data.params, **change})
    left_out = histories.pull([experiment]).left_out
    assert left_out.pop("a copy") == "another run with the same fingerprint is taken"
    assert left_out.pop("words") == "mixture: could not convert string to float: 'abc'"
    assert "the proportions sum to" in left_out.pop("too much")
    assert "it must be >= 0" in left_out.pop("no number")
    assert not left_out


def test_an_experiment_without_proxies_says_so(store: str) -> None:
    assert store
    with pytest.raises(
        InputError, match=r"no complete proxy run in experiment 0 matches .tags\.x = 'y'"
    ):
        histories.pull(["0"], "tags.x = 'y'")


@pytest.mark.slow
def test_the_answer_has_the_contract_columns_and_the_truth(fitted: fit.Fitted) -> None:
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


def test_rounding_is_divided_out_and_whole_numbers_are_numbers(fitted: fit.Fitted) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    exact = model.predict(pd.DataFrame([{**MIXTURE}]))
    rounded = model.predict(pd.DataFrame([{**MIXTURE, "mixture/web": 0.5004}]))
    assert rounded["objective"].iloc[0] == pytest.approx(exact["objective"].iloc[0], abs=1e-3)
    corner = model.predict(pd.DataFrame([dict(zip(MIXTURE, (1, 0, 0), strict=True))]))
    assert np.isfinite(corner["objective"].iloc[0])


def download(fitted: fit.Fitted, tmp_path: Path) -> Path:
    """A copy of the registered model's folder."""
    uri, copy = fitted.registered.uri, tmp_path / "copy"
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(copy)))


@pytest.mark.slow
def test_the_artifact_holds_no_pickle_and_runs_without_torch(
    fitted: fit.Fitted, tmp_path: Path
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


def test_each_version_runs_its_own_code(fitted: fit.Fitted, tmp_path: Path) -> None:
    folder = download(fitted, tmp_path)
    code = next(folder.rglob("laws.py"))
    before = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame([MIXTURE]))
    code.write_text(code.read_text().replace("mixing * shrink", "1 + mixing * shrink"))
    after = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame([MIXTURE]))
    live = mlflow.pyfunc.load_model(fitted.registered.uri).predict(pd.DataFrame([MIXTURE]))
    assert after["objective"].iloc[0] == pytest.approx(before["objective"].iloc[0] + 1)
    assert live["objective"].iloc[0] == pytest.approx(before["objective"].iloc[0])


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


def test_the_fit_run_shows_what_it_found(fitted: fit.Fitted) -> None:
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
def test_a_scale_that_all_runs_share_is_the_only_one_asked(store: str) -> None:
    assert store
    table = synthetic.table(synthetic.joint_law(), sizes=(16e6,))
    done = fit_table(table, target={"tokens": 3.2e9})
    model = mlflow.pyfunc.load_model(done.registered.uri)
    assert np.isfinite(model.predict(pd.DataFrame([MIXTURE]))["objective"][0])
    with pytest.raises(MlflowException, match=r"row 0, column 'n_params': 6.4e\+07; every fitted"):
        model.predict(pd.DataFrame([{**MIXTURE, "n_params": 64e6}]))


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


@pytest.mark.slow
def test_runs_that_are_not_comparable_are_not_fitted_together(store: str) -> None:
    assert store
    experiment = log_runs(synthetic.table(synthetic.joint_law(), 4))
    client = mlflow.MlflowClient()
    for i, run in enumerate(client.search_runs([experiment], "tags.stage = 'proxy'")):
        client.set_tag(run.info.run_id, keys.STUDY, f"study-{i % 2}")
    with pytest.raises(InputError, match=r"\(study-0, study-1\), whose losses are not comparable"):
        histories.pull([experiment])
    assert len(histories.pull([experiment], "tags.study = 'study-1'").table) == 24


def test_a_difference_is_as_certain_as_a_search_says_and_more_than_either_loss(
    fitted: fit.Fitted,
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
    assert same["difference_low"] == same["difference"] == same["difference_high"] == 0
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
        ({"web": 0.5, "code": 0.4}, "'reference': row 0, .*the proportions sum to 0.9"),
        ({"web": 1.5, "code": -0.5}, "'reference': row 0, column 'code': -0.5 must not be neg"),
    ],
)
def test_a_reference_that_is_no_mixture_is_refused(
    fitted: fit.Fitted, reference: dict[str, float], why: str
) -> None:
    model = mlflow.pyfunc.load_model(fitted.registered.uri)
    with pytest.raises(MlflowException, match=why):
        model.predict(pd.DataFrame([MIXTURE]), params={"reference": reference})

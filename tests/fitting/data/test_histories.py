"""Runs read from MLflow: all that were logged, and what is left out, by name."""

import mlflow
import pandas as pd
import pytest

from fitting.data import histories
from fitting.importing import table_reader, writer
from tests.support import synthetic
from tests.support.logged_runs import log_runs
from tests.support.synthetic import MIXTURE
from training.record import keys
from training.record.errors import InputError
from training.record.history import History
from training.record.mlflow_runs import search


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
def test_runs_that_are_not_comparable_are_not_fitted_together(store: str) -> None:
    assert store
    experiment = log_runs(synthetic.table(synthetic.joint_law(), 4))
    client = mlflow.MlflowClient()
    for i, run in enumerate(client.search_runs([experiment], "tags.stage = 'proxy'")):
        client.set_tag(run.info.run_id, keys.STUDY, f"study-{i % 2}")
    with pytest.raises(InputError, match=r"\(study-0, study-1\), whose losses are not comparable"):
        histories.pull([experiment])
    assert len(histories.pull([experiment], "tags.study = 'study-1'").table) == 24


def test_a_check_run_that_is_not_finished_is_not_read(store: str) -> None:
    assert store
    losses = History(("old",), (0, 10), (0, 1_000_000), ((3.0,), (2.9,)))
    for name in ("whole", "begun"):
        run = table_reader.ImportedRun(name, 1000, {"old": 0.5, "new": 0.5}, losses, {}, check=True)
        writer.write([run], writer.Parent("0", "0" * 32, "made up"))
    (begun,) = search(["0"], "attributes.run_name = 'begun'")
    mlflow.MlflowClient().update_run(begun.info.run_id, status="RUNNING")
    assert set(histories.checks(["0"])["run"]) == {"whole"}

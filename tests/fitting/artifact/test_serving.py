"""Predictors behind MLflow's server: what it is told to take and answer, and a bare environment."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.openapi.models import OpenAPI
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from fitting import columns
from fitting.artifact.spec import Spec, Target
from fitting.data.phase_observations import PhaseRuns
from fitting.selection import schedule
from pipelines import schedule as pipeline
from tests.support import fits, schedules, synthetic
from tests.support.stores import empty_store
from training.record import keys

Json = dict[str, Any]
UNREACHABLE = ("Failed to fetch", "error sending request", "dns error", "network was disabled")


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A predictor of mixtures, fitted to runs of one size, and one of schedules."""
    with empty_store(tmp_path_factory.mktemp("served")):
        table = synthetic.table(synthetic.joint_law(), sizes=(16e6,), noise=0.002)
        mixtures = fits.registered(fits.fitted(table, target=Target(16e6, 3.2e9))).uri
        law = schedules.truth()
        runs = PhaseRuns.from_table(schedules.table(law), law.tokens)
        with mlflow.start_run():
            fitted = schedule.fit(runs, np.full(4, 0.25))
            by_phase = pipeline.register(fitted, "schedules", 57_000, keys.NATS).uri
        yield {"mixture": mixtures, "schedule": by_phase}


@pytest.fixture
def client(
    uris: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> TestClient:
    """MLflow's server of a predictor, in this process."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(uris[request.param])))


def described(uri: str) -> Json:
    """The OpenAPI document in a predictor's artifact."""
    path = mlflow.artifacts.download_artifacts(f"{uri}/artifacts/openapi.json")
    return dict(json.loads(Path(path).read_text()))


def post(client: TestClient, row: Json, **params: Any) -> tuple[int, Json]:
    answer = client.post("/invocations", json={"dataframe_records": [row], "params": params})
    return answer.status_code, answer.json()


each = pytest.mark.parametrize(
    ("name", "client"), [("mixture", "mixture"), ("schedule", "schedule")], indirect=["client"]
)


@each
def test_the_description_holds_for_the_server(
    name: str, client: TestClient, uris: dict[str, str]
) -> None:
    document = described(uris[name])
    OpenAPI.model_validate(document)
    paths, schemas = document["paths"], document["components"]["schemas"]
    for path, operations in paths.items():
        assert list(operations) == ["post" if path == "/invocations" else "get"]
        assert path == "/invocations" or client.get(path).status_code == 200
    operation = paths["/invocations"]["post"]
    given = operation["requestBody"]["content"]
    (want,) = operation["responses"]["200"]["content"]["application/json"]["example"]["predictions"]
    row = given["application/json"]["example"]["dataframe_records"][0]
    status, answer = post(client, row)
    assert status == 200
    (got,) = answer["predictions"]
    assert got == pytest.approx(want, abs=1e-5)
    assert list(got) == schemas["Prediction"]["required"]
    csv = given["text/csv"]["example"]
    by_csv = client.post("/invocations", content=csv, headers={"Content-Type": "text/csv"})
    assert by_csv.json() == answer
    known = schemas["Row"]
    assert list(row) == known["required"]
    for column in known["required"]:
        status, answer = post(client, {c: x for c, x in row.items() if c != column})
        assert (status, column in answer["message"]) == (400, True)
    if name == "mixture":
        scales = {c: known["properties"][c]["default"] for c in ("n_params", "tokens")}
        reference = {"web": 1.0}
        status, answer = post(client, row | scales, domain_intervals=True, reference=reference)
        assert set(answer["predictions"][0]) == set(schemas["Prediction"]["properties"])
        assert known["properties"]["n_params"]["const"] == 16e6
        assert set(
            schemas["Request"]["properties"]["params"]["properties"]["reference"]["properties"]
        ) == set(synthetic.DOMAINS)


SHARE = {"web": 0.25, "code": 0.25, "papers": 0.25, "books": 0.25}
SCHEDULE = {f"phase/{k}/mixture/{d}": x for k in (1, 2, 3) for d, x in SHARE.items()}
IN_PHASE = "columns 'phase/2/mixture/web' … 'phase/2/mixture/books': the proportions sum to 1.25"


@pytest.mark.parametrize("client", ["schedule"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase/2/mixture/web": 0.5}, f"row 0, {IN_PHASE}; they must sum to 1 within 0.001"),
        ({"phase/2/mixture/web": None}, "column 'phase/2/mixture/web': the value is missing"),
        ({"phase/2/mixture/web": "half"}, "'phase/2/mixture/web': 'half' is not a number; a prop"),
        ({"phase/2/mixture/web": -0.25}, "'phase/2/mixture/web': -0.25 must not be negative"),
        ({"phase/4/mixture/web": 0.25}, "'phase/4/mixture/web': unknown column (did you mean"),
        ({"n_params": 4e6}, "row 0, column 'n_params': unknown column; the input columns are"),
    ],
)  # fmt: skip
def test_a_bad_schedule_is_refused(client: TestClient, change: Json, message: str) -> None:
    assert post(client, SCHEDULE)[0] == 200
    row = {**SCHEDULE, **change}
    csv = pd.DataFrame([row]).to_csv(index=False)
    by_csv = client.post("/invocations", content=csv, headers={"Content-Type": "text/csv"})
    for status, answer in (post(client, row), (by_csv.status_code, by_csv.json())):
        assert status == 400
        assert message in answer["message"]
        assert set(answer) == {"error_code", "message", "sqlstate", "error_class"}


@pytest.mark.parametrize("client", ["mixture"], indirect=True)
def test_the_scale_of_a_predictor_of_one_size_is_refused(client: TestClient) -> None:
    status, answer = post(client, {**synthetic.MIXTURE, "n_params": 64e6})
    assert status == 400
    assert answer["message"] == (
        "row 0, column 'n_params': 6.4e+07; every fitted run had 1.6e+07, so the law cannot "
        "predict another n_params; leave it out"
    )


def test_descriptions_of_many_domains_fit(uris: dict[str, str]) -> None:
    spec: Spec = mlflow.pyfunc.load_model(uris["mixture"]).unwrap_python_model().spec
    few = columns.description(spec)
    assert "| `mixture/<domain>` | number | proportion of the tokens | from 0 to 1;" in few
    assert "| `n_params` | number | non-embedding parameters | only 16,000,000" in few
    assert "`<domain>`: web, code, papers\n" in few
    names = tuple(f"{'x' * 190}{i}" for i in range(500))
    many = replace(spec, domains=names, val_domains=names, accuracies={name: {} for name in names})
    text = columns.description(many, columns.Example(dict.fromkeys(names, 0.002), {}))
    assert len(text) < keys.TAG_LIMIT
    assert "(500 in all)" in text
    assert columns.names(columns.columns(many)[0], many)[-1] == f"mixture/{names[-1]}"


@pytest.mark.slow
def test_a_bare_environment_of_the_logged_requirements_predicts_the_same(
    uris: dict[str, str], tmp_path: Path
) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    python, rows = (
        tmp_path / "bare/bin/python",
        {"mixture": synthetic.MIXTURE, "schedule": SCHEDULE},
    )
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "bare"], check=True)
    folders = {name: mlflow.artifacts.download_artifacts(uri) for name, uri in uris.items()}
    needed = mlflow.pyfunc.get_model_dependencies(uris["mixture"])
    assert Path(needed).read_text() == Path(folders["schedule"], "requirements.txt").read_text()
    installed = subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "-r", needed],
        capture_output=True,
        text=True,
    )
    if any(text in installed.stderr for text in UNREACHABLE):
        pytest.skip("the package index cannot be reached")
    assert installed.returncode == 0, installed.stderr
    script = f"""
from importlib.util import find_spec
import json, mlflow, pandas as pd
assert not any(map(find_spec, ["torch", "fitting", "training", "optimization", "pipelines"]))
folders, rows = {folders!r}, {rows!r}
answers = {{}}
for name, folder in folders.items():
    answer = mlflow.pyfunc.load_model(folder).predict(pd.DataFrame([rows[name]]))
    answers[name] = answer.iloc[0].to_dict()
print(json.dumps(answers))
"""
    done = subprocess.run(
        [python, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for name, uri in uris.items():
        here = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame([rows[name]]))
        assert answers[name] == pytest.approx(here.iloc[0].to_dict(), rel=1e-12)

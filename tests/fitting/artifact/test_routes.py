"""Every route of MLflow to ask a registered predictor, and what each of them refuses."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from optimization.domain import predictor as predictors
from pipelines import export
from tests.support import synthetic
from tests.support.commands import ROOT, run_entry
from tests.support.logged_runs import fit_table, log_runs
from tests.support.stores import empty_store
from training.record.errors import InputError

PAGE = (ROOT / "docs/reading_a_fit.md").read_text()
SECTION = PAGE.split("## Ask a registered predictor")[1].split("\n## ")[0]
SERVE, ASK = re.findall(r"```bash\n(.*?)```", SECTION, re.S)
PROPORTIONS = json.loads(re.findall(r"mixture = ({.*})", SECTION)[0])
ROW = {f"mixture/{domain}": share for domain, share in PROPORTIONS.items()}
CORNER = {column: int(column == "mixture/web") for column in ROW}
SCALED = {**ROW, "n_params": "4e6", "tokens": 400_000_000}

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A predictor of the domains that the page asks about; no test adds to its proxies."""
    truth = synthetic.joint_law()
    law = replace(truth, slope=np.pad(truth.slope, ((0, 0), (0, 0), (0, 2))))
    table = synthetic.table(law, 16, noise=0.002, domains=tuple(PROPORTIONS))
    with empty_store(tmp_path_factory.mktemp("asked")):
        yield fit_table(table, target=dict(synthetic.TARGET)).registered.uri


@pytest.fixture(scope="module")
def model(uri: str) -> Any:
    return mlflow.pyfunc.load_model(uri)


@dataclass(frozen=True)
class Server:
    """A running `mlflow models serve`."""

    port: int

    def post(self, kind: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        url, headers = f"http://127.0.0.1:{self.port}/invocations", {"Content-Type": kind}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, headers), timeout=60
            ) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def here(command: str, port: int = 0) -> str:
    """A command of the page, in this environment and at a port that is free."""
    assert "--env-manager uv" in command or "mlflow" not in command
    return command.replace("--env-manager uv", "--env-manager local").replace("5001", str(port))


@pytest.fixture(scope="module")
def server(uri: str) -> Iterator[Server]:
    """The page's server."""
    assert uri
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = Path("serve.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            here(f"exec {SERVE}", port),
            shell=True,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=30).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        yield Server(port)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


# the routes --------------------------------------------------------------------------------------


Answer = tuple[int, Any]  # the status, with the answered rows (200) or the error's text
Route = Callable[[Any, Server, Rows], Answer]


def in_process(given: Callable[[Rows], Any]) -> Route:
    """`predict` of the loaded model, given the rows in some form."""

    def ask(model: Any, server: Server, rows: Rows) -> Answer:  # noqa: ARG001
        try:
            return 200, model.predict(given(rows)).to_dict("records")
        except MlflowException as error:
            return error.get_http_status_code(), error.message

    return ask


def served(kind: str, body: Callable[[Rows], bytes]) -> Route:
    """A POST to the model's server, with the rows in some form."""

    def ask(model: Any, server: Server, rows: Rows) -> Answer:  # noqa: ARG001
        status, answer = server.post(kind, body(rows))
        if status == 200:
            return status, answer["predictions"]
        assert "stack_trace" not in answer
        assert not re.search(r"Traceback|\.py|/tmp", answer["message"])
        return status, answer["message"].split("Error: ")[-1]

    return ask


def columns(rows: Rows) -> dict[str, list[Any]]:
    return {column: [row[column] for row in rows] for column in rows[0]}


def csv(rows: Rows) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False).encode()


def parquet(rows: Rows) -> bytes:
    table = pd.DataFrame(rows)
    mixed = [column for column in table if table[column].dtype == object]
    for column in mixed:  # Parquet has one type a column
        table[column] = table[column].map(str, na_action="ignore")
    return bytes(table.to_parquet())


def form(name: str, of: Callable[[Rows], Any] = list) -> Callable[[Rows], bytes]:
    return lambda rows: json.dumps({name: of(rows)}).encode()


def split(rows: Rows) -> dict[str, Any]:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


JSON = "application/json"
ROUTES = {
    "frame": in_process(pd.DataFrame),
    "frame of text": in_process(lambda rows: pd.DataFrame(rows).astype(object).map(str)),
    "records": in_process(list),
    "columns": in_process(columns),
    "arrays": in_process(lambda rows: {k: np.array(v) for k, v in columns(rows).items()}),
    "CSV": served("text/csv", csv),
    "CSV with its index": served(
        "text/csv; charset=utf-8", lambda rows: pd.DataFrame(rows).to_csv().encode()
    ),
    "Parquet": served("application/vnd.apache.parquet", parquet),
    "dataframe_split": served(JSON, form("dataframe_split", split)),
    "dataframe_records": served(JSON, form("dataframe_records")),
    "instances": served(JSON, form("instances")),
    "inputs": served(JSON, form("inputs")),
    "inputs by column": served(JSON, form("inputs", columns)),
}


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("row", [ROW, CORNER, SCALED], ids=["fractions", "whole", "scaled"])
def test_every_route_answers(route: str, row: dict[str, Any], model: Any, server: Server) -> None:
    status, answers = ROUTES[route](model, server, [row, row])
    assert status == 200, answers
    python = model.unwrap_python_model()
    scale = (float(row.get(name, synthetic.TARGET[name])) for name in ("n_params", "tokens"))
    mixture = np.array([[row[column] for column in ROW]])
    want = python.law.predict(mixture, *(np.array([x]) for x in scale))[0].mean()
    assert [answer["objective"] for answer in answers] == pytest.approx([want] * 2)
    assert {"val_loss/books", "objective_low", "objective_high", "distance"} <= set(answers[0])


LISTED = "the input columns are mixture/python, mixture/docs, .* and, optionally, n_params, tokens"
NUMBER = "a proportion is a number from 0 to 1"
POSITIVE = "give a positive number, or leave the column out for the target's 64,000,000"
BAD: dict[str, tuple[dict[str, Any], str]] = {  # what is changed in the second row of two
    "unknown domain": ({"mixture/books": 0.4}, f"'mixture/books': unknown column; {LISTED}"),
    "near miss": ({"n_param": 4e6}, r"'n_param': unknown column \(did you mean 'n_params'\?\); "),
    "other prefix": ({"mixtures/web": 0.3}, "'mixtures/web': unknown column .*'mixture/web'"),
    "identifier": ({"id": 7}, f"'id': unknown column; {LISTED}"),
    "step alone": ({"step": 100}, "'step': unknown column"),
    "sum": ({"mixture/web": 0.4}, "'mixture/tables': the proportions sum to 1.1; they must sum"),
    "negative": ({"mixture/web": -0.3}, f"'mixture/web': '?-0.3'? must not be negative; {NUMBER}"),
    "text": ({"mixture/web": "half"}, f"'mixture/web': 'half' is not a number; {NUMBER}"),
    "empty": ({"mixture/web": None}, f"'mixture/web': .*(missing|not a number).*; {NUMBER}"),
    "scale in words": ({"n_params": "big"}, f"'n_params': 'big' is not a number; {POSITIVE}"),
    "scale of zero": ({"n_params": 0}, f"'n_params': '?0(.0)?'? is not positive; {POSITIVE}"),
    "infinite scale": ({"tokens": "inf"}, "'tokens': '?inf'? is not a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BAD)
def test_every_route_refuses(route: str, name: str, model: Any, server: Server) -> None:
    change, message = BAD[name]
    scale: dict[str, float] = {column: 4e6 for column in ("n_params", "tokens") if column in change}
    good = {**ROW, **scale}
    first = {**good, **{column: None for column in change if column not in good}}
    status, said = ROUTES[route](model, server, [first, {**good, **change}])
    assert status == 400
    assert re.search(message, said)
    assert re.match(r"row [01], columns? '[^\n]*$", said)


@pytest.mark.parametrize("route", ROUTES)
def test_a_missing_domain_is_named(route: str, model: Any, server: Server) -> None:
    short = {column: share for column, share in ROW.items() if column != "mixture/cpp"}
    status, said = ROUTES[route](model, server, [short])
    assert status == 400
    assert said.startswith("row 0, column 'mixture/cpp': missing column; the input columns are")


# in the process ----------------------------------------------------------------------------------


def refused(model: Any, given: Any) -> str:
    with pytest.raises(MlflowException) as error:
        model.predict(given)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in error.value.message
    return str(error.value.message)


def test_the_values_that_are_not_numbers(model: Any) -> None:
    for value, said in (
        (True, "True is not a number"),
        (pd.Timestamp("2026-01-01"), "Timestamp('2026-01-01 00:00:00') is not a number"),
        ([1], "[1] is not a number"),
        (1j, "1j is not a number"),
        ("64M", "'64M' is not a number"),
        ("", "'' is not a number"),
        ("x" * 500, f"'{'x' * 59}… is not a number"),
        (float("nan"), "the value is missing (nan)"),
        (pd.NA, "the value is missing (<NA>)"),
        (10**400, "… is not a finite number"),
    ):
        message = refused(model, [ROW, {**ROW, "n_params": value}][1:])
        assert f"row 0, column 'n_params': {said}" in message or said in message, value
        assert message.endswith("or leave the column out for the target's 64,000,000")
    assert "False is not a number" in refused(model, pd.DataFrame([CORNER]).astype(bool))


def test_what_is_not_a_table_is_refused(model: Any) -> None:
    one = pd.DataFrame([ROW])
    for given, said in (
        (one.to_numpy(), "the input is of type ndarray, not a table with named columns; give a"),
        (one.to_numpy().tolist(), "the input is of type list"),
        (one.iloc[0], "the input is of type Series"),
        ({**columns([ROW]), "tokens": [1e9, 2e9]}, "the columns are not a table"),
        ({"mixture": PROPORTIONS}, "column 'mixture': unknown column"),
        (
            pd.concat([one, one[["mixture/cpp"]]], axis=1),
            "'mixture/cpp': the column is given twice",
        ),
        (pd.DataFrame(), "column 'mixture/python': missing column"),
        ([], "column 'mixture/python': missing column"),
    ):
        assert said in refused(model, given)


def test_rows_are_named_and_answered_by_their_index(model: Any) -> None:
    table = pd.DataFrame([ROW, ROW, {**ROW, "mixture/web": 0.4}])
    assert refused(model, table).startswith("row 2, columns 'mixture/python' … ")
    assert refused(model, table.set_axis(["a", "b", "c"])).startswith("row c, columns ")
    twice = refused(model, table.set_axis([7, 7, 7]))
    assert twice.startswith("row 7 (position 2, counted from 0), columns ")
    for index in (["a", "b"], [7, 7], pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])):
        answer = model.predict(table[:2].set_axis(index))
        assert answer.index.equals(pd.Index(index))
        assert answer["objective"].nunique() == 1
    columns_in_another_order = table[:1][list(ROW)[::-1]]
    assert model.predict(columns_in_another_order).equals(model.predict(table[:1]))


def test_tables_of_no_rows_and_of_many(model: Any, server: Server) -> None:
    empty = model.predict(pd.DataFrame([ROW])[:0])
    assert list(empty) == list(model.predict(pd.DataFrame([ROW])))
    assert len(empty) == 0
    assert server.post("text/csv", csv([ROW]).splitlines()[0]) == (200, {"predictions": []})
    shares = synthetic.mixtures(10_000, 3, tuple(PROPORTIONS))
    many = pd.DataFrame(shares, columns=list(ROW))
    answer = model.predict(many)
    assert np.isfinite(answer.to_numpy()).all()
    pd.testing.assert_frame_equal(model.predict(many[5000:5003]), answer[5000:5003])
    status, served = server.post("text/csv", many.to_csv(index=False).encode())
    assert status == 200
    got = [row["objective"] for row in served["predictions"]]
    assert got == pytest.approx(answer["objective"].tolist())
    many.loc[8765, "mixture/web"] = np.nan
    assert refused(model, many).startswith("row 8765, column 'mixture/web': the value is missing")


def test_an_exported_table_is_asked_as_it_is(uri: str, model: Any, tmp_path: Path) -> None:
    assert uri
    with mlflow.start_run():
        export.export(["0"], "", str(tmp_path / "runs.csv"))
    table = pd.read_csv(tmp_path / "runs.csv")
    assert {"run", "step", "tokens", "n_params"} <= set(table)
    answer = model.predict(table.assign(unit="nats_per_token"))  # as of other units
    for domain in synthetic.VAL_DOMAINS:
        column = f"val_loss/{domain}"
        assert answer[column].to_numpy() == pytest.approx(table[column].to_numpy(), abs=0.02)


# the command line, and what is told ---------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_of_the_page_answer(server: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["bash", "-ec", here(ASK, server.port)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    decoder, text, answers = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer["predictions"][0])
        text = text[end:].strip()
    csv_answer, json_answer, command_line = answers
    assert csv_answer == command_line
    assert "val_loss_low/news" in json_answer
    assert json_answer["objective"] > csv_answer["objective"]  # fewer tokens


@pytest.mark.slow
def test_models_predict_takes_files_and_standard_input(uri: str, tmp_path: Path) -> None:
    books = [{**ROW, "mixture/books": 0.4}]
    (tmp_path / "rows.json").write_bytes(form("dataframe_records")([ROW]))
    asked = {
        "JSON file": (["json", "-i", str(tmp_path / "rows.json")], b""),
        "CSV on standard input": (["csv"], csv([ROW])),
        "bad JSON on standard input": (["json"], form("dataframe_records")(books)),
    }
    command = ["mlflow", "models", "predict", "-m", uri, "--env-manager", "local", "-t"]
    pipe = subprocess.PIPE
    running = {
        name: subprocess.Popen([*command, *more], stdin=pipe, stdout=pipe, stderr=pipe)
        for name, (more, _) in asked.items()
    }
    for name, process in running.items():
        stdout, stderr = process.communicate(asked[name][1], timeout=300)
        if name.startswith("bad"):
            assert process.returncode != 0
            said = stderr.decode().strip().splitlines()[-1]
            assert "row 0, column 'mixture/books': unknown column; the input columns" in said
        else:
            assert process.returncode == 0, stderr.decode()
            assert "objective_high" in json.loads(stdout)["predictions"][0]


def test_a_user_finds_the_input_columns(uri: str, model: Any) -> None:
    info = mlflow.models.get_model_info(uri)
    assert info.metadata["input_columns"] == list(ROW)
    assert info.metadata["optional_input_columns"] == ["n_params", "tokens"]
    assert {"domains", "val_domains", "target", "weights"} <= set(info.metadata)
    assert info.signature.inputs is None
    assert "objective" in info.signature.outputs.input_names()
    assert list(model.input_example) == list(ROW)
    assert len(model.predict(model.input_example)) == 1
    name, number = uri.removeprefix("models:/").split("/")
    version = mlflow.MlflowClient().get_model_version(name, number)
    assert "`mixture/cpp`" in version.description
    assert "optional: `n_params`, `tokens`" in version.description


@pytest.mark.slow
def test_a_version_of_an_earlier_release_answers_and_is_searched(
    store: str, tmp_path: Path
) -> None:
    assert store
    folder = shutil.copytree(ROOT / "tests/recorded/predictor", tmp_path / "recorded")
    mlflow.register_model(str(folder), "earlier")
    row = {"mixture/web": 0.5, "mixture/code": 0.3, "mixture/papers": 0.2}
    answer = mlflow.pyfunc.load_model("models:/earlier/1").predict(pd.DataFrame([row]))
    assert answer["objective"][0] == pytest.approx(2.3693331426398974)  # what it said then
    assert answer["objective_high"][0] == pytest.approx(2.3719355990914903)
    done = run_entry("optimize", "--model=models:/earlier/1", "--trials=20", "--n-params=32000000")
    assert done.returncode == 0, done.stderr
    assert "certified" in done.stdout


@pytest.mark.slow
def test_a_scale_without_an_answer_is_refused_before_a_search(store: str) -> None:
    assert store
    log_runs(synthetic.table(synthetic.joint_law(), sizes=(16e6,)))
    one_size = fit_table(pd.DataFrame(), "0", target={"tokens": 3.2e9}).registered.uri
    with pytest.raises(InputError) as error:
        predictors.load(one_size, n_params=64e6)
    assert "has no answer at n_params 64,000,000 and tokens 3,200,000,000: " in str(error.value)
    assert "every fitted run had 1.6e+07" in str(error.value)

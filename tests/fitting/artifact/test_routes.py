"""Every route of MLflow to ask a registered predictor, and what each of them refuses."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from optimization.domain import predictor as predictors
from pipelines import export
from tests.support import serving, synthetic
from tests.support.commands import ROOT, run_entry
from tests.support.logged_runs import fit_table, log_runs
from tests.support.serving import JSON, Server
from tests.support.stores import empty_store
from training.record.errors import InputError

PAGE = (ROOT / "docs/asking_a_predictor.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
SERVE = next(code for _, code in BLOCKS if "models serve" in code)
PROPORTIONS = json.loads(re.findall(r"mixture = ({.*})", PAGE)[0])
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


@pytest.fixture(scope="module")
def server(uri: str) -> Iterator[Server]:
    """The page's server."""
    with serving.served(uri, Path.cwd(), SERVE) as started:
        yield started


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
        assert set(answer) == {"error_code", "message", "sqlstate", "error_class"}
        return status, answer["message"]

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
COUNT = r"give a number from 1 to 2\^63, or leave it out for the target's 64,000,000"
BAD: dict[str, tuple[dict[str, Any], str]] = {  # what is changed in the second row of two
    "unknown domain": ({"mixture/books": 0.4}, f"'mixture/books': unknown column; {LISTED}"),
    "near miss": ({"n_param": 4e6}, r"'n_param': unknown column \(did you mean 'n_params'\?\); "),
    "other prefix": ({"mixtures/web": 0.3}, "'mixtures/web': unknown column .*'mixture/web'"),
    "bare domain": ({"web": 0.3}, r"'web': unknown column \(did you mean 'mixture/web'\?\); "),
    "identifier": ({"id": 7}, f"'id': unknown column; {LISTED}"),
    "step alone": ({"step": 100}, "'step': unknown column"),
    "sum": ({"mixture/web": 0.4}, "'mixture/tables': the proportions sum to 1.1; they must sum"),
    "negative": ({"mixture/web": -0.3}, f"'mixture/web': '?-0.3'? must not be negative; {NUMBER}"),
    "text": ({"mixture/web": "half"}, f"'mixture/web': 'half' is not a number; {NUMBER}"),
    "empty": ({"mixture/web": None}, f"'mixture/web': .*(missing|not a number).*; {NUMBER}"),
    "scale in words": ({"n_params": "big"}, f"'n_params': 'big' is not a number; {COUNT}"),
    "scale of zero": ({"n_params": 0}, f"'n_params': '?0(.0)?'? is less than 1; {COUNT}"),
    "huge scale": ({"tokens": 1e30}, r"'tokens': '?1e\+30'? is too large; give a number from 1"),
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


def refused(model: Any, given: Any, params: dict[str, Any] | None = None) -> str:
    with pytest.raises(MlflowException) as error:
        model.predict(given, params=params)
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
        assert message.endswith("or leave it out for the target's 64,000,000")
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
        (pd.DataFrame(), "the table has no rows; give at least one; the input columns are"),
        ([], "the table has no rows"),
        (one[:0], "the table has no rows"),
        (
            pd.DataFrame({"mixture/python;mixture/cpp": ["1;0"]}),
            "unknown column (separate the columns of a CSV by commas)",
        ),
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


def test_tables_of_many_rows(model: Any, server: Server) -> None:
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


def alike(text: str) -> Any:
    """An answer without its numbers and the names of its losses; a text of CSV by its columns."""
    if not text.startswith("{"):
        head, *rows = text.strip().splitlines()
        return len(rows), sorted({re.sub(r"(val_loss\w*/).*", r"\1", c) for c in head.split(",")})
    answer = json.loads(text)
    if "predictions" not in answer:
        return answer
    return [
        sorted({re.sub(r"(val_loss\w*/).*", r"\1", column) for column in row})
        for row in answer["predictions"]
        if np.isfinite(list(row.values())).all()
    ]


@pytest.mark.slow
def test_the_page_shows_what_its_examples_say(
    uri: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    monkeypatch.setenv("MODEL", uri)
    monkeypatch.setenv("PORT", str(server.port))
    said, shells = {}, {"bash": ["bash", "-ec"], "python": [sys.executable, "-c"]}
    for (kind, code), (shown_as, shown) in pairwise([*BLOCKS, ("", "")]):
        if kind not in shells or code == SERVE or code.startswith("export"):
            continue
        done = subprocess.run([*shells[kind], code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[code] = done.stdout
        if shown_as in ("json", "text"):
            assert alike(done.stdout) == alike(shown), code
    by_file = [json.loads(text) for code, text in said.items() if "-i rows.csv" in code]
    by_file += [json.loads(text) for code, text in said.items() if "@rows.csv" in code]
    assert len(by_file) == 2
    assert by_file[0] == by_file[1]
    assert json.loads(list(said.values())[-1])["openapi"] == "3.1.0"


def test_the_page_lists_what_is_refused(model: Any) -> None:
    told = [cell.rstrip("… ,;") for cell in re.findall(r"^\| [^|]+ \| `(.+)` \|$", PAGE, re.M)]
    without = {column: share for column, share in ROW.items() if column != "mixture/cpp"}
    params = {"reference": {"python": 0.4, "docs": 0.5}}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (without, {}),
        ({**ROW, "mixture/wep": 0.1}, {}),
        *(({**ROW, "mixture/cpp": value}, {}) for value in (np.nan, "a lot", -0.1)),
        ({**ROW, "tokens": 1e30}, {}),
        (ROW, params),
    ]
    said = [refused(model, pd.DataFrame([row]), given) for row, given in cases]
    said.append(refused(model, pd.DataFrame()))
    found = {cell for cell in told for message in said if message.startswith(cell)}
    assert len(found) == len(said)
    assert [cell for cell in told if cell not in found and "every fitted run had" not in cell] == []


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        (JSON, '{"dataframe_records": [', 400, "Expecting value: line 1 column 24"),
        (JSON, "[]", 400, "exactly one of the input fields"),
        (JSON, "{}", 400, "exactly one of the input fields"),
        (JSON, '{"dataframe_records": 5}', 400, "must be a list of records"),
        (JSON, '{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}', 400, "2 columns"),
        (JSON, json.dumps({"dataframe_records": [ROW], "params": {"reference": {"cop": 1}}}), 400,
         "not defined in the schema found: {'cop'}"),
        (JSON, json.dumps({"dataframe_records": [ROW], "params": {"domain_intervals": "on"}}), 400,
         "'domain_intervals'"),
        ("text/csv", "", 400, "No columns to parse from file"),
        ("text/csv", "a,b\n1,2\n1,2,3,4\n", 400, "Expected 2 fields in line 3, saw 4"),
        ("text/plain", "0.2", 415, "only supports the following content types"),
        ("text/csv; charset=latin-1", "a", 415, "only supports UTF-8"),
    ],
)  # fmt: skip
def test_what_mlflow_refuses_before_the_predictor(
    kind: str, body: str, status: int, message: str, server: Server
) -> None:
    code, answer = server.post(kind, body.encode())
    assert code == status
    assert message in (answer["message"] if isinstance(answer, dict) else answer)
    if isinstance(answer, dict):  # as the page says, of a file that cannot be read
        assert ("stack_trace" in answer) == (kind == "text/csv")


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
    assert "mixture/<domain>" in version.description
    assert "`<domain>`: python, docs" in version.description
    assert "| `tokens` | number | tokens | from 1 to 2^63 |" in version.description


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

"""No password reaches what a command leaves or prints; a plain PostgreSQL URL works."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import mlflow
import pytest
import sqlalchemy

from pipelines.study import load
from tests.support.commands import ROOT, run_entry
from tests.support.postgres import PASSWORD, Server
from tests.support.studies import WriteStudy
from training.record import stores as stores_of_training
from training.record.errors import InputError
from training.record.mlflow_runs import log_params
from training.record.secrets import masked, remember

BOTH: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
STORES = {"MLFLOW_TRACKING_URI": "tracking store", "MLFLOW_REGISTRY_URI": "model registry"}
WAYS = (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), json.dumps(PASSWORD)[1:-1])


@pytest.fixture
def stores(server: Server, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Databases for ledger, tracking and registry, the latter two in the environment."""
    assert store
    ledger, tracking, registry = urls = [server.database() for _ in range(3)]
    assert ledger
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registry)
    yield urls
    mlflow.set_registry_uri("")


def contents(url: str) -> Iterator[tuple[str, str]]:
    """Every row of every table of a database, as text."""
    engine = sqlalchemy.create_engine(url)
    tables = sqlalchemy.inspect(engine).get_table_names()
    with engine.connect() as connection:
        for table in tables:
            for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"'):
                yield table, " ".join(map(str, row))
    engine.dispose()


def assert_nothing_shows(folder: Path, urls: list[str], *printed: str) -> None:
    """No way to write the password is in files, databases or what was printed."""
    for text in printed:
        assert not any(way in text for way in WAYS), text
    for url in urls:
        rows = list(contents(url))
        assert rows
        for table, row in rows:
            assert not any(way in row for way in WAYS), (table, row)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "study.yaml"]
    assert len(files) > 50
    for path in files:
        assert not any(way.encode() in path.read_bytes() for way in WAYS), path


@pytest.mark.slow
def test_a_sweep_and_a_fit_on_postgresql_show_no_password(
    stores: list[str], miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    study = write_study({**miniature, "ledger": stores[0]})
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    swept = subprocess.run(
        [*command, "-e", "sweep", f"-Pstudy={study}"], capture_output=True, text=True, timeout=600
    )
    assert swept.returncode == 0, swept.stderr[-3000:]
    fitted = run_entry("fit", "--study", study, "--compare", "false")
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    client = mlflow.MlflowClient()
    assert len(client.search_runs(["0"], "tags.stage = 'proxy' and tags.complete = 'true'")) == 8
    assert client.get_model_version_by_alias("mixture-predictor", "champion").name
    (sweep,) = client.search_runs(["0"], "tags.stage = 'sweep'")
    written = mlflow.artifacts.load_dict(f"runs:/{sweep.info.run_id}/study.json")
    address = urlsplit(stores[0])
    assert written["ledger"] == f"postgresql://sweeper:***@127.0.0.1:{address.port}{address.path}"
    printed = (swept.stdout, swept.stderr, fitted.stdout, fitted.stderr)
    assert_nothing_shows(tmp_path, stores, *printed)


@pytest.mark.slow
def test_commands_that_fail_are_one_line_without_the_password(
    server: Server, store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    with socket.socket() as silent:  # it takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        hole = silent.getsockname()[1]
        there, here = server.url("nowhere"), f"@127.0.0.1:{server.port}/postgres"
        for url, reason in {
            there: 'database "nowhere" does not exist',
            f"postgresql://sweeper:wrong-{quote(PASSWORD)}{here}": "password authentication failed",
            f"postgres://sweeper:{quote(PASSWORD)}{here}": "write postgresql:// for postgres://",
            f"postgresql://sweeper:{PASSWORD}@127.0.0.1:1/db": "Connection refused",
            f"postgresql://sweeper:{PASSWORD}@127.0.0.1:{hole}/db": "connection timeout expired",
            f"postgresql://nowhere.invalid/db?user=a&password={quote(PASSWORD)}": "resolve host",
            f"sweeper:{PASSWORD}@127.0.0.1/db": "it is not a URL like postgresql://host:5432/data",
        }.items():
            with pytest.raises(InputError, match=re.escape(reason)) as caught:
                stores_of_training.refuse_unavailable(url, "ledger", "studies")
            assert "\n" not in str(caught.value)
            assert not any(way in str(caught.value) for way in WAYS), caught.value

    refused = run_entry("sweep", "--study", write_study({**miniature, "ledger": there}))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("sweep: ledger 'postgresql://sweeper:***@127")
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert '"nowhere" does not exist' in run.data.tags["error"]
    assert not Path(miniature["workspace"]).exists()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        gone = run_entry("optimize", env={name: there})
        assert gone.returncode == 1
        assert gone.stderr.splitlines()[-1].startswith(f"optimize: {STORES[name]} ({name}) 'postgr")
        assert not any(way in gone.stdout + gone.stderr for way in WAYS)
    assert all(way not in row for _, row in contents(store) for way in WAYS)


@pytest.mark.long
@pytest.mark.slow
def test_a_launched_worker_reads_no_url_from_a_file(
    stores: list[str], miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    study = write_study({**miniature, "ledger": stores[0], "workspace": miniature["workspace"]})
    command = [sys.executable, "-m", "pipelines", "train", "--study", study, "--size", "tiny"]
    process = subprocess.Popen([*command, "--ranks", "2"], cwd=ROOT, text=True, **BOTH)
    notes: dict[Path, bytes] = {}
    while process.poll() is None:
        for path in Path(miniature["workspace"]).glob("corpora/job-*"):
            with contextlib.suppress(OSError):
                notes[path] = path.read_bytes()
        time.sleep(0.05)
    assert process.stdout is not None
    printed = process.stdout.read()
    assert process.returncode == 0, printed
    assert notes
    for found in (*map(repr, notes.values()), printed):
        assert "postgresql" not in found
        assert not any(way in found for way in WAYS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pass-word@h:5432/db", "postgresql://user:***@h:5432/db"),
        ("postgresql+psycopg2://u:p%40s/s#w@h/db?a=b@c", "postgresql+psycopg2://u:***@h/db?a=b@c"),
        (
            "postgresql://h/db?user=a&password=p%40ss&x=1",
            "postgresql://h/db?user=a&password=***&x=1",
        ),
        ("git+https://ghp_token@github.com/a/b", "git+https://***@github.com/a/b"),
        ("https://ghp_token:x-oauth-basic@h/a, http://u:pw@h", "https://***@h/a, http://***@h"),
        ("host=h user=u password='a b' dbname=d", "host=h user=u password=*** dbname=d"),
        ('{"a":"mysql://u:p@h","b":"c@d"}', '{"a":"mysql://u:***@h","b":"c@d"}'),
        ("models:/m@champion -P tokens=1e11 key=3", "models:/m@champion -P tokens=1e11 key=3"),
        ("http://localhost:5000/#/experiments/0@x", "http://localhost:5000/#/experiments/0@x"),
        ("sqlite:////a/b@c/d.db postgresql://u@h/d", "sqlite:////a/b@c/d.db postgresql://u@h/d"),
    ],
)
def test_a_url_is_masked_by_its_shape(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_known_secrets_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", 'ge"heim ü')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s%2Fecret-one@server")
    monkeypatch.setenv("HF_TOKEN", "abc")  # too short to be one
    remember("postgresql://postgres:postgres@h/d")
    assert masked('x ge"heim ü, ge%22heim%20%C3%BC, ge\\"heim \\u00fc y') == "x ***, ***, *** y"
    assert masked("s/ecret-one s%2Fecret-one abc") == "*** *** abc"
    assert masked("postgresql of user postgres") == "postgresql of user ***"
    remember("postgresql://u:7?Secret99@h/d")  # not encoded as it should be
    assert "Secret99" not in masked("ledger 'postgresql://u:7?Secret99@h/d' cannot be opened")


@pytest.mark.usefixtures("store")
def test_a_password_of_digits_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "4096")
    params = {"tokens_per_step": 4096, "mixture/web": 0.4096, "url": "x://u:4096@h"}
    with mlflow.start_run() as run:
        log_params(run.info.run_id, params)
    logged = mlflow.get_run(run.info.run_id).data.params
    assert logged == {"tokens_per_step": "4096", "mixture/web": "0.4096", "url": "x://u:***@h"}


def test_a_study_is_written_without_its_ledgers_password(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    url = f"postgresql://sweeper:{quote(PASSWORD, safe='')}@h/db"
    plan = load.load(write_study({**miniature, "ledger": url}))
    assert plan.ledger_url() == url
    for written in (plan.model_dump_json(), repr(plan.model_dump()), repr(plan)):
        assert not any(way in written for way in WAYS)

"""What a command would refuse at last, it refuses at first: before anything is written."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines import __main__ as commands
from pipelines import critical, design, entry, main, prepare, schedule, sweep, train, verify
from tests.support.commands import call
from tests.support.studies import WriteStudy
from training.record.errors import InputError

Change = dict[str, Any]

ONE = {"workers": "1", "ranks": "1"}
MAIN = SWEEP = {**ONE, "plan": "false", "throughput": ""}
NOTHING = ("mixture", "schedule", "steps", "hostfile", "throughput")
TRAIN = {
    **dict.fromkeys(NOTHING, ""),
    "size": "tiny",
    "seed": "0",
    "save_model": "false",
    "ranks": "1",
    "plan": "false",
}
LATE = '[{"mixture": {"news": 1}}, {"from_tokens": 25600, "mixture": {"math": 1}}]'
VERIFY = {**ONE, "model": "", "mixture": "", "trials": "", "hostfile": ""}
DESIGN = {"model": "", "count": "2", "way": "", "enqueue": "false"}
OF_RUNS = ("experiment", "runs", "original", "tokens", "tolerance")
CRITICAL = {**ONE, **dict.fromkeys((*OF_RUNS, "new_validation", "weights", "model"), "")}
SCHEDULE = {**ONE, "model": ""}

SIDES = {"original": {"news": 1}, "new": {"code": 1}, "steps": 9, "shares": [0.2, 0.5, 0.8]}
PHASES = {"phases": {"size": "tiny", "steps": [4, 4]}}
LISTED = {"mixtures": [{"news": 1}, {"code": 1}, {"math": 1}], "sizes": ["tiny", "small"]}
GONE = "runs:/0123456789abcdef0123456789abcdef/model"
NO_MODEL = "models:/nothing@champion"
NO_CONFIG = {"sizes": {n: {"config": f"/no/{n}.json"} for n in ("tiny", "small")}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "parameters", "change", "message"),
    [
        (main, MAIN, {"model": "org/predictor"}, "model: 'org/predictor' contains '/'"),
        (sweep, SWEEP, {"model": "a:b"}, "model: 'a:b' contains ':'"),
        (main, {**MAIN, "ranks": "3"}, {}, "8 sequences cannot be shared evenly by 3 processes"),
        (train, {**TRAIN, "ranks": "3"}, {}, "8 sequences cannot be shared evenly by 3 processes"),
        (main, MAIN, {"engine": {"micro_batch_size": 3}}, "micro_batch_size: 3 does not divide"),
        (
            main,
            MAIN,
            {"sweep": {"mixtures": 4, "sizes": ["tiny", "tiny"]}},
            "a size is named twice",
        ),
        (
            main,
            MAIN,
            {"bounds": {"news": (0.6, 0.6), "code": (0.3, 0.3)}},
            "bounds and bundles leave a single mixture",
        ),
        (sweep, SWEEP, NO_CONFIG, "config '/no/tiny.json' cannot be loaded"),
        (main, MAIN, {"ledger": "sqlite:////dev/null/l.db"}, "ledger: /dev/null is not a folder"),
        (main, MAIN, {"ledger": "postgresql://u:p@127.0.0.1:1/d"}, "failed: Connection refused"),
        (design, DESIGN, {"ledger": "postgres://u:p@h/d"}, "write postgresql:// for postgres://"),
        (prepare, {}, {"workspace": "/dev/null/w"}, "workspace: /dev/null is not a folder"),
        (main, MAIN, {"workspace": "/proc/w"}, "workspace: /proc cannot be written"),
        (train, {**TRAIN, "mixture": "nevs=1"}, {}, "mixture: unknown domain 'nevs'"),
        (train, {**TRAIN, "schedule": LATE}, {}, "a phase begins at 25,600 tokens, the run ends"),
        (train, {**TRAIN, "hostfile": "/no/hosts"}, {}, "hostfile: /no/hosts cannot be read"),
        (verify, {**VERIFY, "model": NO_MODEL}, {}, f"model {NO_MODEL!r} cannot be loaded"),
        (design, {**DESIGN, "model": NO_MODEL}, {}, f"model {NO_MODEL!r} cannot be loaded"),
        (schedule, SCHEDULE, {**PHASES, "sweep": LISTED}, "a schedule designs its own"),
        (schedule, {**SCHEDULE, "model": "a/b"}, PHASES, "model: 'a/b' contains '/'"),
        (
            critical,
            {**CRITICAL, "weights": "nevs=1"},
            {"critical": {**SIDES, "size": "tiny"}},
            "weights: unknown domain 'nevs'",
        ),
        (
            critical,
            {**CRITICAL, "new_validation": "maths"},
            {"critical": {**SIDES, "size": "tiny"}},
            "new_validation: unknown domain 'maths'",
        ),
        (critical, CRITICAL, {"critical": {**SIDES, "base": GONE}}, "cannot be downloaded"),
        (critical, CRITICAL, {"critical": {**SIDES, "base": "/no"}}, "'/no' is not a folder"),
    ],
)
def test_a_refused_command_leaves_nothing_but_its_failed_run(
    command: Any,
    parameters: dict[str, str],
    change: Change,
    message: str,
    store: str,
    miniature: Change,
    write_study: WriteStudy,
) -> None:
    assert store
    study = write_study({**miniature, **change})
    with pytest.raises(InputError, match=re.escape(message)) as caught, entry.stage("test"):
        call(command, study=study, **parameters)
    assert "\n" not in str(caught.value)
    assert not Path(miniature["workspace"]).exists()
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert message in run.data.tags["error"]
    assert not mlflow.search_registered_models()
    assert len(mlflow.search_experiments()) == 1


@pytest.mark.parametrize(
    ("command", "parameters"),
    [
        (main, MAIN),
        (sweep, SWEEP),
        (train, TRAIN),
        (verify, VERIFY),
        (critical, CRITICAL),
        (schedule, SCHEDULE),
    ],
)
def test_what_trains_asks_for_a_compiler_first(
    command: Any,
    parameters: dict[str, str],
    store: str,
    miniature: Change,
    write_study: WriteStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    for name in ("PATH", "CXX", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    study = write_study({**miniature, **PHASES, "critical": {**SIDES, "size": "tiny"}})
    with pytest.raises(InputError, match=r"^no C\+\+ compiler"), entry.stage("test"):
        call(command, study=study, **parameters)
    assert not Path(miniature["workspace"]).exists()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Runs an entry point that is refused; returns the text that it ends with."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def refused(name: str, *parameters: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipelines", name, *parameters])
        with pytest.raises(SystemExit) as end:
            commands.main()
        return str(end.value.code)

    yield refused
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("fit", ("--model", "org/predictor"), "fit: model: 'org/predictor' contains '/'"),
        ("fit", ("--model", "m" * 300), f"fit: model: {'m' * 300!r} has 300 characters"),
        (
            "critical",
            ("--experiment", "Default", "--model", ".."),
            "critical: model: '..' is not a",
        ),
        ("export", ("--output", "/no/runs.csv"), "export: output: there is no folder /no"),
        ("export", ("--output", "/proc/runs.csv"), "export: output: /proc cannot be written: No "),
        ("optimize", ("--model", NO_MODEL), f"optimize: model {NO_MODEL!r} cannot be loaded: "),
    ],
)
def test_a_refused_command_is_one_line(
    name: str, parameters: tuple[str, ...], message: str, store: str, run: Callable[..., str]
) -> None:
    assert store
    told = run(name, *parameters)
    assert told.startswith(message)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("variable", "uri", "message"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", "cannot be used: "),
        ("MLFLOW_TRACKING_URI", "sqlite:////proc/no/m.db", "/proc cannot be written: No such"),
        ("MLFLOW_REGISTRY_URI", "sqlite:////dev/null/m.db", "/dev/null is not a folder"),
    ],
)
def test_a_store_that_does_not_answer_is_one_line(
    variable: str,
    uri: str,
    message: str,
    store: str,
    run: Callable[..., str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    monkeypatch.setenv(variable, uri)
    if variable == "MLFLOW_TRACKING_URI":
        mlflow.set_tracking_uri(uri)
    else:
        mlflow.set_registry_uri(uri)
        request.addfinalizer(lambda: mlflow.set_registry_uri(""))
    told = run("prepare")
    assert told.startswith("prepare: ")
    assert f"({variable})" in told
    assert message in told
    assert "\n" not in told

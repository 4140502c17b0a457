"""What the entry points print: our lines and no others; and what their runs are called."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipelines import entry
from pipelines.command import titles
from tests.support import synthetic
from tests.support.commands import ROOT, run_entry
from tests.support.studies import WriteStudy
from training.record import keys

OURS = re.compile(
    r"""
    | (domain|news|code|math)\s.*                         # prepare's table
    | (starting\ workers|run\ \d+\ of|waiting\ for).*     # the progress line of the workers
    | compiling\ DeepSpeed's\ kernel.*
    | (reading\ for\ a\ tokenizer|tokenising|importing)\ ?.*
    | [{}] | \ "\w+":\ [\d.]+,?                           # losses of `train`
    | import:\ 36\ runs.* | \ \ 144\ evaluations.* | \ \ fit\ them:.*
    | fit:\ 36\ runs.* | \ \ (WARNING|note):\ .*
    | \ \ (held-out|backtest|the\ law's|the\ best|laws,|expected|target:|registered)\ .*
    | \ \ law:\ .* | \ {7}\S.* | (look\ at|search)\ it:\ .*
    | \ \ since\ version\ 1:\ .*
    | (mixture|best|uniform|best\ observed)\s.*\d.*
    | mixture\s.*predicted\ loss(\s+above\ the\ best)?
    | predicted\ gain\ .* | by\ the\ law\ .* | distance\ of\ .*
    | no\ allowed\ mixture\ .* | near-optimal\ set.* | with\ another\ sample\ .*
    | \ \ \w+\ [01]\.\d{3}–.*
    """,
    re.X,
)


def said(name: str, *parameters: str) -> list[str]:
    """The lines of an entry point, those that overwrote each other too."""
    done = run_entry(name, *parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    return re.split(r"[\r\n]+", done.stdout + "\n" + done.stderr)


@pytest.mark.long
@pytest.mark.slow
def test_only_our_lines_are_printed_and_runs_are_named(
    new_store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    tmp_path: Path,
) -> None:
    """On a store that does not exist yet, with a worker, a registered model and a search."""
    assert new_store
    study, runs = write_study(miniature), tmp_path / "runs.csv"
    synthetic.table(synthetic.joint_law(), noise=0.002).to_csv(runs, index=False)
    lines = [
        *said("train", "--study", study, "--size", "tiny", "--save-model", "true"),
        *said("import", "--source", str(runs), "--format", "tidy", "--experiment", "mine"),
        *said("fit", "--experiment", "mine", "--compare", "false"),
        *said("fit", "--experiment", "mine", "--compare", "false", "--power", "1"),
        *said("optimize", "--model", "models:/mixture-predictor/2", "--trials", "20"),
    ]
    assert [line for line in lines if not OURS.fullmatch(line)] == []
    top = f"attributes.status = 'FINISHED' and tags.{keys.STAGE} != 'x'"
    names = [run.info.run_name for run in mlflow.MlflowClient().search_runs(["0"], top)]
    assert names[::-1] == [
        "train miniature tiny",
        "import runs.csv",
        "fit mine",
        "fit mine",
        "optimize mixture-predictor v2",
    ]


@pytest.mark.slow
def test_warnings_and_errors_of_libraries_are_shown() -> None:
    """A real call that warns of what tells nothing, and others through the same loggers."""
    script = """
import logging, sys, warnings
import mlflow, torch
from mlflow.tracking._model_registry import fluent
from training.record.quiet import quiet
quiet()
quiet()
from torch.utils import cpp_extension
torch.cuda.is_available = lambda: False
cpp_extension._find_cuda_home()
logging.getLogger("mlflow.store.db.utils").info("Creating initial MLflow database tables")
fluent.eprint("Created version '1' of model 'm'.")
warnings.warn("old", FutureWarning)
print("-- shown", file=sys.stderr)
logging.getLogger("torch.utils.cpp_extension").warning("The compiler is too old")
logging.getLogger("mlflow.store.db.utils").warning("The schema is out of date")
fluent.eprint("Packing environment")
warnings.warn("wrong shape")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "CUDA_HOME": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, shown = done.stderr.split("-- shown\n")
    assert before == ""
    texts = ("The compiler is too old", "The schema is out of date", "Packing", "wrong shape")
    assert all(text in shown for text in texts)


@pytest.mark.usefixtures("store")
def test_a_name_that_the_user_gave_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient()
    for given, name in ((None, "sweep quickstart"), ("mine", "mine"), ("web-code-3", "web-code-3")):
        run = client.create_run("0", run_name=given)  # as `mlflow run` does
        assert given or titles.generated(run.info.run_name)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        with entry.stage(keys.SWEEP, {"study": "quickstart"}), entry.stage(keys.PREPARE) as own:
            assert own.info.run_name == keys.PREPARE
        assert client.get_run(run.info.run_id).info.run_name == name


@pytest.mark.parametrize(
    ("stage", "parameters", "name"),
    [
        (keys.MAIN, {"study": "quickstart", "workers": "auto"}, "main quickstart"),
        (keys.SWEEP, {"study": "/no/folder/mine.yaml"}, "sweep mine"),
        (keys.PROXY, {"study": "quickstart", "size": "57k"}, "train quickstart 57k"),
        (keys.FIT, {"study": "", "experiment": ""}, "fit Default"),
        (keys.FIT, {"study": "", "experiment": "old,new"}, "fit old,new"),
        (keys.OPTIMIZE, {"model": "models:/mine/3", "study": "quickstart"}, "optimize mine v3"),
        (keys.OPTIMIZE, {"model": "", "study": ""}, "optimize mixture-predictor@champion"),
        (keys.OPTIMIZE, {"model": "", "study": "pile"}, "optimize pile"),
        (keys.EXPLORE, {"model": "models:/mine/3", "study": "pile"}, "explore mine v3"),
        (keys.CRITICAL, {"study": "", "experiment": ""}, "critical quickstart"),
        (keys.IMPORT, {"source": "a/m.csv,b/l.csv", "experiment": "x"}, "import m.csv, l.csv"),
        (keys.IMPORT, {"source": "s" * 300, "experiment": ""}, f"import {'s' * 92}…"),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_run_is_called_after_what_it_does(
    stage: str, parameters: dict[str, str], name: str
) -> None:
    assert entry.title(stage, parameters, "0") == name


@pytest.mark.usefixtures("store")
def test_a_run_is_called_after_the_name_in_the_study_file(tmp_path: Path) -> None:
    path = tmp_path / "study-2.yaml"
    for content, name in (
        ("name: web_code\n", "main web_code"),
        ("name: [web]\n", "main study-2"),  # which `load` explains
        ("name: 'web\n", "main study-2"),
    ):
        path.write_text(content)
        assert entry.title(keys.MAIN, {"study": str(path)}, "0") == name

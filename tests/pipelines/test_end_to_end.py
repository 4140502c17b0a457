"""The whole loop on a miniature study, as a user starts it; what it leaves in MLflow; mistakes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import transformers
from mlflow.entities import Run

from pipelines import __main__ as commands
from tests.support import pages
from tests.support.commands import ROOT, run_entry, take_ctrl_c
from tests.support.studies import WriteStudy
from training.record import keys
from training.record.history import history_from_tags
from training.record.version import TAG
from training.record.version import version as project_version

DOMAINS = ("news", "code", "math")


def runs_of(stage: str, extra: str = "") -> list[Run]:
    return mlflow.MlflowClient().search_runs(["0"], f"tags.stage = '{stage}'" + extra)


def mlflow_run(entry: str, **parameters: str) -> "subprocess.CompletedProcess[str]":
    """`mlflow run . -e ENTRY -P …` in this environment."""
    return subprocess.run(command(entry, **parameters), capture_output=True, text=True, timeout=900)


def command(entry: str, **parameters: str) -> list[str]:
    options = [f"-P{key}={value}" for key, value in parameters.items()]
    start = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry]
    return [*start, "--env-manager", "local", *options]


@pytest.mark.slow
def test_mlflow_run_leaves_a_verified_mixture(
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    texts: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    assert store
    rows = [(name, text) for name, documents in texts.items() for text in documents]
    pd.DataFrame(rows, columns=["source", "text"]).to_parquet(tmp_path / "all.parquet")
    one_set = {"files": "all.parquet", "domain_column": "source"}
    miniature["domains"] = {name: {**one_set, "domain_value": name} for name in texts}
    done = mlflow_run("main", study=write_study(miniature))
    assert done.returncode == 0, done.stderr[-3000:]
    client = mlflow.MlflowClient()
    (main,) = runs_of("main")
    (sweep,) = runs_of("sweep")
    proxies = runs_of("proxy")

    # the tree: main → stages, sweep → proxies, verify → targets
    stages = {stage: runs_of(stage)[0] for stage in ("prepare", "fit", "optimize", "verify")}
    assert all(r.data.tags[keys.PARENT] == main.info.run_id for r in [sweep, *stages.values()])
    assert len(proxies) == 8
    assert all(r.data.tags[keys.PARENT] == sweep.info.run_id for r in proxies)
    targets = runs_of("target")
    assert {r.data.tags[keys.PARENT] for r in targets} == {stages["verify"].info.run_id}
    assert all(r.info.status == "FINISHED" for r in [main, sweep, *proxies, *targets])
    assert (main.info.run_name, sweep.info.run_name) == ("main miniature", "sweep miniature")
    assert not pages.dead_links()
    assert "**Answers of this version**" in pages.descriptions()["version 1 of mixture-predictor"]

    # the contract of a proxy run
    for run in proxies:
        params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
        assert tags[TAG] == project_version()
        mixture = [float(params[f"mixture/{d}"]) for d in DOMAINS]
        assert sum(mixture) == pytest.approx(1)
        assert {"n_params", "tokens_per_step", "seed", "size", "learning_rate"} <= set(params)
        assert params["tokens_per_step"] == "256"
        assert tags["complete"] == "true"
        read = history_from_tags(tags)
        assert read is not None
        assert read.steps == (4, 7, 12)
        assert read.tokens == (1024, 1792, 3072)
        for i, domain in enumerate(DOMAINS):
            series = client.get_metric_history(run.info.run_id, f"val_loss/{domain}")
            assert [m.step for m in series] == [4, 7, 12]
            assert [m.value for m in series] == pytest.approx([x[i] for x in read.losses], rel=1e-8)
            assert f"val_bpb/{domain}" in metrics
        assert {"tokens", "train_loss", "tokens_per_second"} <= set(metrics)
        inputs = {(d.dataset.name, d.tags[0].value) for d in run.inputs.dataset_inputs if d.tags}
        assert {(d, "training") for d in DOMAINS} <= inputs
        assert {(f"{d}/validation", "validation") for d in DOMAINS} <= inputs
    assert len({r.data.params["n_params"] for r in proxies}) == 2

    # the predictor, the best mixture and the proof
    version = client.get_model_version_by_alias("mixture-predictor", "champion")
    best = {f"mixture/{d}": float(main.data.params[f"mixture/{d}"]) for d in DOMAINS}
    answer = mlflow.pyfunc.load_model(f"models:/mixture-predictor/{version.version}").predict(
        pd.DataFrame([best])
    )
    verify = stages["verify"].data.metrics
    assert answer["objective"].iloc[0] == pytest.approx(verify["predicted/best"], abs=1e-9)
    assert {"measured/best", "measured/default", "measured/uniform", "gain"} <= set(verify)
    compared = mlflow.artifacts.load_text(
        f"runs:/{stages['verify'].info.run_id}/measured_beside_predicted.json"
    )
    rows = pd.read_json(StringIO(compared), orient="split")
    seeds = {"best": 2, "default": 2, "uniform": 1, "best observed": 1}
    assert rows["mixture"].value_counts().to_dict() == seeds
    assert set(rows["run_id"]) == {r.info.run_id for r in targets}  # equal mixtures share a run
    assert len({r.data.params["max_steps"] for r in targets}) == 1

    # the report, the summary and its two lines of Python
    page = mlflow.artifacts.load_text(f"runs:/{main.info.run_id}/report.html")
    assert f"{verify['gain']:.4f}".replace("-", "−") in page
    text = done.stdout
    assert "report.html, among its artifacts" in text
    for words in ("best", "default", "predicted", "measured", "cross-validated error", "mlflow ui"):
        assert words in text
    for words in ("Created version", "Successfully", "built successfully", "INFO mlflow.pyfunc"):
        assert words not in done.stdout + done.stderr
    lines = re.findall(r"^  (model.*)$", text, re.M)
    scope: dict[str, Any] = {"mlflow": mlflow, "pd": pd}
    exec(lines[0], scope)
    assert "objective" in eval(lines[1], scope)

    # again: nothing is trained twice
    again = mlflow_run("main", study=write_study(miniature))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "sweep: 8 runs, 8 already trained" in again.stdout
    assert len(runs_of("proxy")) == 8
    assert len(runs_of("target")) == len(targets)


@pytest.mark.slow
def test_nothing_breaks_the_studys_rules_and_no_stray_run_is_fitted(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature |= {
        "bounds": {"math": [0, 0], "code": [0.5, 0.8]},
        "default_mixture": "proportional",
    }
    study = write_study(miniature)

    def allowed(values: Mapping[str, Any], prefix: str) -> bool:
        shares = [float(values[f"{prefix}{d}"]) for d in DOMAINS]
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        by_name = dict(zip(DOMAINS, shares, strict=True))
        return by_name["math"] == 0 and 0.5 - 1e-9 <= by_name["code"] <= 0.8 + 1e-9

    done = mlflow_run("main", study=study)  # on JSONL files
    assert done.returncode == 0, done.stderr[-3000:]
    page = Path(study).with_name("report.html")
    reported = mlflow_run("report", study=study, output=str(page))
    assert reported.returncode == 0, reported.stderr[-3000:]
    gain = runs_of("verify")[0].data.metrics["gain"]
    assert f"{gain:.4f}".replace("-", "−") in page.read_text()
    assert "nearest to uniform" in done.stdout
    assert not re.search(r"^uniform|\]   breaks ", done.stdout, re.M)
    run = run_entry("design", "--study", study, "--count=1", "--enqueue=true")
    assert run.returncode == 0, run.stderr[-3000:]
    swept = run_entry("sweep", "--study", study)
    assert swept.returncode == 0, swept.stderr[-3000:]
    every = mlflow.search_runs(output_format="list")
    held = [r.data.params for r in every if "mixture/code" in r.data.params]
    assert len(held) > 8 + 6 + 2  # proxies, targets, main and optimize
    assert all(allowed(params, "mixture/") for params in held)
    defaults = [r.data.params for r in every if "default_mixture/code" in r.data.params]
    assert defaults
    assert all(allowed(params, "default_mixture/") for params in defaults)
    (searched,) = runs_of("optimize")
    compared = mlflow.artifacts.load_dict(f"runs:/{searched.info.run_id}/compared.json")
    table = pd.DataFrame(compared["data"], columns=compared["columns"])
    assert set(table["mixture"]) == {"best", "default", "nearest to uniform", "best observed"}
    assert all(allowed(row, "mixture/") for row in table.to_dict("records"))

    # how the sweep ends, and the fit that it names
    (tag,) = {r.data.tags["study"] for r in runs_of("proxy")}
    assert (
        f"sweep: all 10 runs are done, 2 of them since this command started; tags.study = '{tag}'"
        in swept.stdout
    )
    assert f"mlflow run . --env-manager uv -e fit -P study={study}" in swept.stdout
    fitted = run_entry("fit", "--study", study, "--compare=false")
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    assert "fit: 10 runs (8 planned by sweep, 2 proposed by design); " in fitted.stdout
    assert "  since version 1: 2 more runs (next-" in fitted.stdout


@pytest.mark.long
@pytest.mark.slow
def test_a_run_of_ones_own_changes_no_fit(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["bounds"] = {"math": [0, 0], "code": [0.5, 0.8]}
    miniature["default_mixture"] = "proportional"
    study = write_study(miniature)
    for command_of in ("sweep", "fit"):
        done = run_entry(command_of, "--study", study)
        assert done.returncode == 0, done.stderr[-3000:]
    own = run_entry(
        "train", "--study", study, "--size=tiny", "--steps=6", "--mixture=math=0.5,code=0.5"
    )
    assert own.returncode == 0, own.stderr[-3000:]
    assert (
        "breaks a rule of the study (bounds: math at most 0): fits leave this run out" in own.stdout
    )
    own = run_entry("train", "--study", study, "--size=tiny", "--steps=6")
    assert own.returncode == 0, own.stderr[-3000:]
    again = run_entry("fit", "--study", study, "--compare=false")
    assert "fit: 8 runs (8 planned by sweep); " in again.stdout
    assert "2 runs left out (added by train: " in again.stdout
    assert "  since version 1: nothing changed, neither the runs nor the law" in again.stdout
    asked = run_entry("fit", "--study", study, "--compare=false", "--unplanned=true")
    assert "9 runs (8 planned by sweep, 1 added by train" in asked.stdout
    assert "1 run left out (breaks the rule 'bounds: math at most 0': " in asked.stdout


@pytest.mark.long
@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["training"]["steps"] = 150
    study = write_study(miniature)
    assert not runs_of("proxy")  # two processes cannot make MLflow's tables at once
    process = subprocess.Popen(
        command("sweep", study=study, workers="1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take_ctrl_c,
    )
    complete = " and tags.complete = 'true'"
    deadline = time.monotonic() + 240
    while len(runs_of("proxy", complete)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted; run the command again to resume" in errors
    (sweep,) = runs_of("sweep")
    assert sweep.info.status in ("KILLED", "FAILED")  # ours, then that of `mlflow run`
    assert sweep.data.tags["error"] == "interrupted"
    finished = {r.info.run_id for r in runs_of("proxy", complete)}
    assert len(finished) < 8
    assert not [r for r in runs_of("proxy") if r.info.status == "RUNNING"]

    done = mlflow_run("sweep", study=study)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"sweep: 8 runs, {len(finished)} already trained" in done.stdout
    every = runs_of("proxy", complete)
    assert finished < {r.info.run_id for r in every}
    assert len(every) == 8
    assert len({r.data.tags[keys.FINGERPRINT] for r in every}) == 8


@pytest.mark.slow
def test_one_model_trains_alone_and_diverges_loudly(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    study = write_study(miniature)
    mixture = "news=0.5,code=0.3,math=0.2"
    parameters = {"size": "tiny", "steps": "6", "seed": "3"}
    done = mlflow_run(
        "train", study=study, mixture=mixture, ranks="2", save_model="true", **parameters
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (together,) = runs_of("proxy")
    assert (together.data.params["size"], together.data.params["seed"]) == ("tiny", "3")
    assert together.data.params["mixture/code"] == "0.3"
    assert together.data.params["processes"] == "2"
    assert together.data.metrics["tokens"] == 6 * 256
    folder = mlflow.artifacts.download_artifacts(f"runs:/{together.info.run_id}/model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(folder))
    # a run's mixture is a mixture parameter too; one process has the losses of two
    options = [f"--{key}={value}" for key, value in parameters.items()]
    done = run_entry(
        "train", f"--study={study}", f"--mixture=runs:/{together.info.run_id}", *options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = runs_of("proxy")[0]
    assert alone.data.params["processes"] == "1"
    for domain in DOMAINS:
        metric = f"val_loss/{domain}"
        assert alone.data.metrics[metric] == pytest.approx(together.data.metrics[metric], abs=1e-5)

    miniature["sizes"]["tiny"]["learning_rate"] = 1e30
    done = run_entry("train", "--study", write_study(miniature), "--size", "tiny")
    assert done.returncode == 1
    assert "loss not finite at step" in done.stderr
    (failed,) = [r for r in runs_of("proxy") if r.info.status == "FAILED"]
    assert failed.data.tags["diverged"] == "true"
    assert "loss not finite at step" in failed.data.tags["error"]


@pytest.mark.long
@pytest.mark.slow
def test_kill_9_and_start_again(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["training"] |= {"steps": 400, "evaluations": 6}
    miniature["engine"] = {"checkpoint_minutes": 0}
    study = write_study(miniature)
    process = subprocess.Popen(
        command("train", study=study, size="tiny"), stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 240
    checkpoints = Path(miniature["workspace"], "checkpoints")
    while not list(checkpoints.glob("*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (dead,) = runs_of("proxy")
    assert keys.COMPLETE not in dead.data.tags

    done = mlflow_run("train", study=study, size="tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = runs_of("proxy", " and tags.complete = 'true'")[0]
    dead = mlflow.get_run(dead.info.run_id)
    assert dead.info.status == "KILLED"
    assert f"continued by run {resumed.info.run_id}" in dead.data.tags["error"]
    done = run_entry("train", "--study", study, "--size", "tiny")
    whole = runs_of("proxy", " and tags.complete = 'true'")[0]
    assert whole.info.run_id != resumed.info.run_id
    one, other = (history_from_tags(run.data.tags) for run in (resumed, whole))
    assert one == other
    for run in (resumed, whole):
        series = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss/news")
        assert one is not None
        assert [m.step for m in series] == list(one.steps)


@pytest.mark.parametrize(
    ("entry", "parameters", "message"),
    [
        ("prepare", ["--study", "nowhere"], "study 'nowhere': no such file"),
        ("train", ["--size", "huge"], "size: no size 'huge'; there are tiny, small, 0.1M"),
        ("train", ["--size", "tiny", "--mixture", "news=0.5,cod=0.5"], "unknown domain 'cod'"),
        ("train", ["--size", "tiny", "--mixture", "news=0.5,code=0.4"], "sum to 0.9; they must"),
        (
            "train",
            ["--size", "tiny", "--mixture", "half"],
            "neither JSON nor a file that can be read",
        ),
        ("train", ["--size", "tiny", "--steps", "ten"], "steps: 'ten' is not a number"),
        ("sweep", ["--workers", "0"], "workers: '0' is not an integer from 1"),
        ("fit", ["--experiment", "nothing"], "experiment: no experiment 'nothing'; there are: D"),
        ("fit", [], "no complete proxy run in experiment 0"),
        ("fit", ["--method", "magic"], "method: 'magic'; it is auto, joint, nested, bimix"),
        ("optimize", ["--model", "models:/none@champion"], "model 'models:/none@champion' cannot"),
        ("critical", [], "study 'miniature' has no section `critical`, which says what is"),
        ("critical", ["--experiment", "Default"], "experiment: give a study, which is trained, or"),
        ("critical", ["--tolerance", "-1"], "tolerance: '-1' must be >= 0, in the unit of the"),
        ("critical", ["--original", "news"], "original: it goes with experiment; a study says it"),
        ("schedule", [], "study 'miniature' has no section `phases`, which says how a schedule"),
        ("train", ["--size", "tiny", "--schedule", "half"], "schedule: 'half' is neither JSON"),
        ("evaluate", ["--model", "runs:/none"], "model: 'runs:/none': Run with id=none not found"),
        ("design", ["--count", "0"], "count: '0' is not an integer from 1"),
        ("design", ["--way", "wide"], "way: 'wide'; it is spread, halved, sobol, dirichlet"),
    ],
)
def test_a_mistake_is_one_line_and_a_failed_run(
    entry: str,
    parameters: list[str],
    message: str,
    store: str,
    miniature: dict[str, Any],
    write_study: WriteStudy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store
    if entry in ("train", "sweep", "design", "critical", "schedule"):
        parameters = ["--study", write_study(miniature), *parameters]
    monkeypatch.setattr(sys, "argv", ["pipelines", entry, *parameters])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as end:  # whose text is all that the user sees
        commands.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert message in str(end.value.code)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert message in run.data.tags["error"]


@pytest.mark.slow
def test_no_compiler_is_one_line(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    assert store
    done = run_entry(
        "sweep",
        "--study",
        write_study(miniature),
        env={"PATH": str(tmp_path), "CXX": ""},
    )
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr
    (sweep,) = runs_of("sweep")
    assert sweep.info.status == "FAILED"
    assert "no C++ compiler" in sweep.data.tags["error"]


@pytest.mark.slow
def test_a_mistake_fails_the_mlflow_run_too(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    assert store
    miniature["validation"]["tokens"] = 10_000_000
    done = mlflow_run("prepare", study=write_study(miniature))
    assert done.returncode != 0
    assert "raise validation.fraction (0.1) or lower validation.tokens" in done.stderr
    (run,) = runs_of("prepare")
    assert run.info.status == "FAILED"

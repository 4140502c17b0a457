"""The HTML report: its claims, its figures in a browser, its links, and what it says of parts."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run, RunData
from scipy import stats
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from fitting import registry
from optimization.domain import predictor as predictors
from pipelines import entry, optimize, report
from pipelines import imports as importing
from pipelines.command import texts as command_texts
from pipelines.html_report import (
    findings,
    lineage,
    measured,
    mixture_charts,
    predicted,
    render,
    statements,
    tables,
)
from pipelines.html_report.findings import Findings
from pipelines.html_report.links import Links
from pipelines.prepare import prepare
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from tests.pipelines.command.test_advice import answer, free_port
from tests.support import browser, synthetic
from tests.support.commands import call, run_entry
from tests.support.logged_runs import fit_table
from tests.support.recorded import Recorded, found, prove
from tests.support.stores import empty_store
from tests.support.studies import miniature_study, written
from training.record import keys, markdown
from training.record.errors import InputError

HOSTILE = "</script><b>&{{ 7 * 7 }}"
LIMIT = 5_000_000  # bytes
needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, list[str]]) -> Iterator[str]:
    """A store with a verified study, whose best mixture is better, and the study's file."""
    folder = tmp_path_factory.mktemp("report")
    with empty_store(folder):
        content = miniature_study(folder, texts)
        content["sweep"] = {"mixtures": 8, "sizes": ["tiny", "small"]}
        path = written(folder, content)
        with mlflow.start_run():
            prepared = prepare(studies.load(path))
        recorded = found(prepared, noise=0.001)
        with entry.stage(keys.VERIFY) as active:
            with entry.stage(keys.OPTIMIZE):
                problem = search_problem.of_study(prepared.study, recorded.predictor)
                optimize.optimize(recorded.predictor, problem)
            prove(recorded, {}, active)
        (proxy, *_) = mlflow.search_runs(
            filter_string=f"tags.stage = '{keys.PROXY}'", output_format="list"
        )
        mlflow.MlflowClient().set_tag(proxy.info.run_id, keys.RUN_NAME, HOSTILE)
        yield path


@pytest.fixture(scope="module")
def file(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's report."""
    path = tmp_path_factory.mktemp("written") / "report.html"
    done = run_entry("report", "--study", study, "--output", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"MB → {path}" in done.stdout
    assert "/artifacts/report.html?" in done.stdout
    return path


def newest(stage: str) -> Run:
    runs = mlflow.search_runs(filter_string=f"tags.stage = '{stage}'", output_format="list")
    return max(runs, key=lambda run: run.info.start_time)


def text_of(page: str) -> str:
    """What a reader sees, without the figures' data."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def linked(page: str) -> set[str]:
    """The ids of the runs that links lead to."""
    return set(re.findall(r'href="[^"]*#/experiments/\d+/runs/(\w+)[?"]', page))


def test_its_claims_are_those_of_the_runs(file: Path) -> None:
    written, verify, searched = file.read_text(), newest(keys.VERIFY), newest(keys.OPTIMIZE)
    text, metrics = text_of(written), verify.data.metrics
    assert file.stat().st_size < LIMIT
    assert "Which mixture of news, code and math gives a model of" in text
    gain, low, high = (metrics[name] for name in ("gain", "gain_low", "gain_high"))
    assert "BETTER Trained on the best mixture, the target's loss is lower" in text
    assert f"{gain:.4f} [{low:.4f}, {high:.4f}]" in text
    assert f"{metrics['predicted_gain']:.4f}" in text
    assert "16 proxy runs on 8 mixtures" in text
    for domain in ("news", "code", "math"):
        assert f"{float(searched.data.params[f'mixture/{domain}']):.4f}" in text
    best = {d: float(searched.data.params[f"mixture/{d}"]) for d in ("news", "code", "math")}
    (parameter,) = re.findall(r'data-copy="(news=[^"]+)"', written)
    assert command_texts.mixture(parameter, [*best]) == pytest.approx(best)
    assert f'data-copy="runs:/{searched.info.run_id}"' in written
    domains = re.findall(r'<th scope="row">(news|code|math)</th>', written)
    assert domains == [*best] * 2  # of the mixtures and of the losses
    for title in ("Reasons for caution", "Measured beside predicted", "The laws compared",
                  "Near-optimal ranges", "What to train next", "Cost", "Runs"):  # fmt: skip
        assert title in text
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    by_id = {run.info.run_id: run.data.tags.get(keys.STAGE) for run in runs}
    assert {by_id[run_id] for run_id in linked(written)} >= {
        *(keys.VERIFY, keys.OPTIMIZE, keys.FIT, keys.PROXY, keys.TARGET)
    }
    assert newest(keys.REPORT).info.status == "FINISHED"
    logged = mlflow.artifacts.load_text(f"runs:/{newest(keys.REPORT).info.run_id}/report.html")
    assert logged == written


def test_names_are_texts(file: Path) -> None:
    written = file.read_text()
    assert HOSTILE not in written
    assert html.escape(HOSTILE) in written
    assert written.count("</script>") == 3  # that end the bundle, the figures and the program


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_sorts_and_copies_without_a_network(file: Path, tmp_path: Path) -> None:
    with browser.chromium(tmp_path / "profile") as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        opened(driver, file)
        plots = driver.find_elements("css selector", ".plot")
        assert {plot.get_attribute("data-figure") for plot in plots} == {
            *("proportions", "gains", "beside", "by_loss", "tokens", "held_out", "against")
        }
        assert all(plot.find_elements("css selector", "svg.main-svg") for plot in plots)
        labels = driver.execute_script(
            "return [...document.querySelectorAll('[role=img]')].map(p => p.ariaLabel)"
        )
        assert all(re.search(r"\d", label) for label in labels)
        fetched = "return performance.getEntriesByType('resource').map(e => e.name)"
        assert driver.execute_script(fetched) == []
        assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]

        column = (
            "return [...document.querySelectorAll('#table-mixtures tbody tr')]"
            ".map(row => Number(row.cells[1].dataset.value))"
        )
        head = driver.find_elements("css selector", "#table-mixtures thead button")[1]
        head.click()
        assert driver.execute_script(column) == sorted(driver.execute_script(column))
        head.send_keys("\n")  # as by the keyboard
        shares = driver.execute_script(column)
        assert shares == sorted(shares, reverse=True)
        sorting = "return document.querySelectorAll('#table-mixtures thead th')[1].ariaSort"
        assert driver.execute_script(sorting) == "descending"

        origin = {"origin": "file://", "permissions": ["clipboardReadWrite"]}
        driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": origin["permissions"]})
        driver.find_element("css selector", "#table-mixtures .copy-table").click()
        done = (
            "return document.querySelector('#table-mixtures .copy-table').textContent == 'Copied'"
        )
        WebDriverWait(driver, browser.SECONDS).until(lambda d: d.execute_script(done))
        copied = driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[arguments.length - 1])"
        )
        rows = [line.split("\t") for line in copied.splitlines()]
        assert rows[0][:2] == ["domain", "best"]
        assert [float(row[1]) for row in rows[1:]] == shares


@needs_browser
@pytest.mark.slow
def test_a_phone_a_dark_room_and_paper(file: Path, tmp_path: Path) -> None:
    with browser.chromium(tmp_path / "profile") as driver:
        phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        opened(driver, file)
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        colours = (
            "return [getComputedStyle(document.body).backgroundColor, "
            "document.querySelector('.plot .xtick text').style.fill]"
        )
        light = driver.execute_script(colours)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        WebDriverWait(driver, browser.SECONDS).until(
            lambda d: all(a != b for a, b in zip(light, d.execute_script(colours), strict=True))
        )
        driver.execute_script("dispatchEvent(new Event('beforeprint'))")
        WebDriverWait(driver, browser.SECONDS).until(lambda d: d.execute_script(colours) == light)
        folded = "return document.querySelectorAll('details:not([open])').length"
        assert driver.execute_script(folded) == 0


@needs_browser
@pytest.mark.slow
def test_without_decompression_every_number_is_still_there(file: Path, tmp_path: Path) -> None:
    with browser.chromium(tmp_path / "profile") as driver:
        old = {"source": "delete window.DecompressionStream"}
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", old)
        opened(driver, file, "undrawn")
        assert driver.find_element("id", "undrawn").is_displayed()
        assert driver.find_element("id", "table-mixtures").is_displayed()


def opened(driver: WebDriver, file: Path, state: str = "drawn") -> None:
    driver.get(file.as_uri())
    script = f"return document.documentElement.classList.contains('{state}')"
    WebDriverWait(driver, browser.SECONDS).until(lambda d: d.execute_script(script))


@pytest.mark.slow
@pytest.mark.usefixtures("study")
def test_links_lead_to_the_runs_of_a_server(tmp_path: Path) -> None:
    uri, port = mlflow.get_tracking_uri(), free_port()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port),
         "--workers", "1"],
        env={**clean, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        there, path = f"http://127.0.0.1:{port}", tmp_path / "report.html"
        assert answer(f"{there}/health", server) == b"OK"
        done = run_entry("report", "--output", str(path), env={"MLFLOW_TRACKING_URI": there})
        assert done.returncode == 0, done.stderr[-3000:]
        written = path.read_text()
        assert "mlflow ui" not in written
        links = set(re.findall(r'href="(http[^"]*)"', written))
        assert len(links) > 20
        assert all(link.startswith(f"{there}/#/experiments/0/runs/") for link in links)
        for run_id in linked(written):
            asked = f"{there}/api/2.0/mlflow/runs/get?run_id={run_id}"
            with urllib.request.urlopen(asked) as response:
                assert json.loads(response.read())["run"]["info"]["run_id"] == run_id
        with urllib.request.urlopen(f"{there}/") as response:
            assert b"<html" in response.read()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.usefixtures("store")
def test_parts_are_reported_and_what_is_missing_is_said(tmp_path: Path) -> None:
    """Imported runs: first only a fit of them, then a search too."""
    table = synthetic.table(synthetic.joint_law(), noise=0.002)
    table["run"] = HOSTILE + table["run"]
    table.to_csv(tmp_path / "runs.csv", index=False)
    output = str(tmp_path / "report.html")
    with entry.stage(keys.IMPORT):
        call(importing, source=str(tmp_path / "runs.csv"), format="tidy", experiment="mine")
    mine = mlflow.get_experiment_by_name("mine")
    with pytest.raises(InputError, match=r"no finished fit in 'mine'; fit its runs first: mlflow"):
        reported(experiment="mine")
    fit_table(table, mine.experiment_id, target=dict(synthetic.TARGET))
    text = text_of(reported(experiment="mine", output=output))  # its fit lies in another experiment
    assert "NOT SEARCHED" in text
    assert "-e optimize -P model=models:/mixture-predictor/1" in text
    assert "No verification: train the target on the best mixture" in text
    assert "12 mixtures" in text
    with entry.stage(keys.OPTIMIZE):
        call(optimize, trials="20")
    written = reported(experiment="mine", output=output)
    gain = newest(keys.OPTIMIZE).data.metrics["gain"]
    assert "PREDICTED" in text_of(written)
    assert "No warnings" in text_of(written)
    assert "The law fits its runs; the backtests hold." in text_of(written)
    assert f"{gain:.4f} [" in text_of(written)
    assert HOSTILE not in written
    note = "two sizes for the three parameters of the size law"
    mlflow.MlflowClient().set_tag(newest(keys.FIT).info.run_id, registry.NOT_IDENTIFIED, note)
    text = text_of(reported(experiment="mine"))
    assert "The runs do not identify all of the law that predicts it." in text
    assert f"The runs do not identify all of the law: {note}" in text
    assert "No warnings" not in text
    mlflow.MlflowClient().delete_registered_model("mixture-predictor")
    text = text_of(reported())
    assert f"{gain:.4f} [" in text  # as the search logged it
    assert "The predictor cannot be loaded any more" in text
    assert "Nothing is known of how well the law fits" in text


def reported(**given: str) -> str:
    """The page that `report` logs."""
    with entry.stage(keys.REPORT) as active:
        call(report, **given)
    return mlflow.artifacts.load_text(f"runs:/{active.info.run_id}/report.html")


@pytest.mark.parametrize("ratio", [0.4, 0.7, 1.0, 2.0, 5.0])
def test_seeds_that_make_the_interval_exclude_0_are_the_fewest(ratio: float) -> None:
    """`ratio` is the error between seeds over the gain."""
    needed = measured.seeds_needed(0.01 * ratio, 0.01)
    widths = {n: stats.t.ppf(0.95, 2 * n - 2) * ratio * (2 / n) ** 0.5 for n in range(2, 200)}
    assert needed == min(n for n, width in widths.items() if width <= 1)


def test_a_change_within_its_interval_is_unclear() -> None:
    changes = {"web": -0.2, "stubs": 0.343, "cpp": 0.007, "python": 0.342}
    widths = {"web": 0.02, "stubs": 0.1, "cpp": 0.02, "python": 0.02}
    title = mixture_charts.told(changes, widths)
    assert title == "2 of 4 losses are clearly higher: stubs +0.343, python +0.342; 1 is unclear"
    title = mixture_charts.told({"web": -0.2, "cpp": 0.007}, widths)
    assert title == "1 of 2 losses is clearly lower, none clearly higher; 1 is unclear"
    assert mixture_charts.told(changes, {}) == "None of 4 losses is clearly higher or lower"


def test_a_name_that_begins_like_another_is_another_predictor() -> None:
    def of(uri: str) -> bool:
        params = [mlflow.entities.Param("model_uri", uri)]
        info = mlflow.entities.RunInfo("abc", "3", "me", "FINISHED", 0, 1, "active")
        return findings._of_model(Run(info, RunData(params=params)), "models:/mixture-predictor")

    assert of("models:/mixture-predictor/3")
    assert of("models:/mixture-predictor@champion")
    assert not of("models:/mixture-predictor-continued/3")


@pytest.mark.usefixtures("study")
def test_another_study_has_no_report(texts: dict[str, list[str]], tmp_path: Path) -> None:
    other = written(tmp_path, {**miniature_study(tmp_path, texts), "name": "other"})
    with pytest.raises(InputError, match=r"there is no finished fit of study .* in 'Default'; fit"):
        reported(study=other)


def test_a_full_disk_is_told(study: str) -> None:
    with pytest.raises(InputError, match="output: /dev/full could not be written: No space left"):
        reported(study=study, output="/dev/full")


@pytest.mark.usefixtures("store")
def test_mistakes_are_told() -> None:
    mlflow.create_experiment("empty")
    with pytest.raises(InputError, match="experiment: no experiment 'none'; there are: "):
        reported(experiment="none")
    with pytest.raises(InputError, match=r"no finished fit in 'empty'; it has no runs to fit eith"):
        reported(experiment="empty")
    with pytest.raises(InputError, match="output: there is no folder"):
        reported(output="/nowhere/report.html")


def verified(study: str, best: dict[str, float] | None, **changed: Any) -> Findings:
    """What is found where the search has another problem, or another mixture is trained."""
    prepared = Prepared.find(studies.load(study))
    assert prepared is not None
    predictor = predictors.load(optimize.champion(prepared.study.model))
    problem = replace(search_problem.of_study(prepared.study, predictor), **changed)
    with entry.stage(keys.VERIFY) as active:
        with entry.stage(keys.OPTIMIZE):
            answer = optimize.optimize(predictor, problem)
        prove(Recorded(prepared, predictor, answer), {}, active, best)
    return findings.gather(lineage.of(mlflow.get_run(active.info.run_id)))


def test_what_is_compared_has_the_weights_of_the_search(study: str) -> None:
    weights = {"news": 0.7, "code": 0.2, "math": 0.1}
    f = verified(study, None, weights=weights)
    assert f.proof is not None
    assert f.weights == pytest.approx(weights)
    assert "0.7 news + 0.2 code + 0.1 math" in str(statements.method(f)[0])
    assert "are of the mean validation loss" in str(statements.method(f)[0])
    means = f.proof.table.groupby("mixture").mean(numeric_only=True)
    told = {row[0].text: row[-1].value for row in tables.compared(f).rows}
    for name in ("best", "default"):
        expected = sum(w * means.loc[name, f"measured/{d}"] for d, w in weights.items())
        assert told[name] == pytest.approx(expected)
        measured_at_end, by_law = (
            {curve.label: curve.losses[-1] for curve in curves}[name]
            for curves in (f.measured, f.predicted)
        )
        assert measured_at_end == pytest.approx(expected)
        assert by_law == pytest.approx(expected, abs=0.01)


def test_a_verified_mixture_is_not_taken_for_that_of_the_search(study: str) -> None:
    f = verified(study, {"news": 0.2, "code": 0.2, "math": 0.6})
    assert "above the best of the search" in tables.compared(f).columns
    assert "near-optimal from" not in tables.mixtures(f).columns
    assert statements.certificate(f) == statements.near_optimal(f) == ()
    assert any("is not that of the search" in str(text) for text, *_ in statements.cautions(f))


def test_a_near_optimal_set_of_everything_is_a_caution(study: str) -> None:
    f, predictor = verified(study, None), predictors.load(f"models:/{studies.load(study).model}/1")
    lowest, highest = predictor.fitted.min(axis=0), predictor.fitted.max(axis=0)
    every = pd.DataFrame({"domain": predictor.domains, "lowest": lowest, "highest": highest})
    assert predicted.spanned(predictor, every) == pytest.approx(1)
    assert 0 < f.spanned == predicted.spanned(predictor, f.ranges) < statements.WIDE
    told = "near-optimal proportions range over 100 % of what was trained"
    assert told.capitalize() in str(statements.cautions(replace(f, spanned=1.0)))
    assert "near-optimal proportions" not in str(statements.cautions(f)).lower()


def test_a_misfit_comes_before_what_was_measured(study: str) -> None:
    f = verified(study, None)
    f = replace(f, standing=replace(f.standing, misfit="the law does not describe its runs"))
    answer = statements.answer(f)
    assert answer.word == "NOT TO BE BELIEVED:"
    told = "".join(part if isinstance(part, str) else part.text for part in answer.sentence)
    assert told.startswith("The law does not describe its runs (run ")
    assert ". For what it is worth, trained on the best mixture, the target's loss is" in told


def test_a_run_that_mixtures_share_is_shown_once() -> None:
    targets = pd.DataFrame(
        {
            "mixture": ["best", "best", "default", "uniform", "best observed"],
            "run_id": ["a", "b", "c", "d", "d"],
        }
    )
    once = mixture_charts._once(targets)
    assert list(once["mixture"]) == ["best", "best", "default", "uniform, best observed"]


@pytest.mark.usefixtures("study")
def test_a_report_that_fails_loses_no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise RuntimeError("no space left")

    monkeypatch.setattr(render, "render", fails)
    with entry.stage(keys.VERIFY) as active:
        told = report.attach_report(active, "quickstart")
    assert told.startswith("report.html could not be written (")
    assert told.endswith("mlflow run . --env-manager uv -e report -P study=quickstart")
    assert mlflow.get_run(active.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("https://me:secret@host/mlflow/", "https://host/mlflow"),
        ("databricks://profile", ""),
        ("postgresql://me:secret@db/mlflow", "http://127.0.0.1:5000"),
    ],
)
def test_links_hold_no_secret(uri: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(mlflow.entities.RunInfo("abc", "3", "me", "FINISHED", 0, 1, "active"), None)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: uri)
    links = Links.of_store(run)
    assert links.base == base
    assert links(run) == (f"{base}/#/experiments/3/runs/abc?{markdown.MODE}" if base else "")
    assert "secret" not in links.command

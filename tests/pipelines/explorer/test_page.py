"""The page as a user has it: the command, a browser, other origins, and Ctrl-C."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pandas as pd
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from optimization.domain.predictor import Predictor
from pipelines.explorer.layout import dom_id
from tests.pipelines.explorer.conftest import DEFAULT, Store
from tests.support import browser
from tests.support.commands import ROOT, run_entry, take_ctrl_c
from training.record import keys

pytestmark = pytest.mark.slow
WAIT = 90  # seconds, on a busy machine


@dataclass
class Running:
    """The command `explore`, and where its page is."""

    process: "subprocess.Popen[str]"
    url: str

    def answer(self, path: str = "", method: str = "GET", **headers: str) -> tuple[int, str]:
        """Status and text of a request with these headers."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=WAIT)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{path}", headers=named)
        got = connection.getresponse()
        return got.status, got.read().decode()


@contextmanager
def exploring(registered: Store) -> Iterator[Running]:
    """The command until its page answers, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "explore", "--model", registered.model, "--port", "0"],
        cwd=ROOT, env={**os.environ, "MLFLOW_TRACKING_URI": registered.uri}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=take_ctrl_c,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"the page is at (http://127\.0\.0\.1:\d+/)", line):
                yield Running(process, found[1])
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def running(registered: Store) -> Iterator[Running]:
    with exploring(registered) as made:
        yield made


class Page:
    """A browser on the page."""

    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def control(self, kind: str, name: str = "") -> WebElement:
        return self.driver.find_element(By.XPATH, f"//*[@id='{dom_id(kind, name)}']")

    def click(self, kind: str, name: str = "") -> None:
        """Click what an answer may draw again meanwhile."""

        def clicked(_: WebDriver) -> bool:
            self.control(kind, name).click()
            return True

        self.until(clicked)

    def lock(self, name: str) -> None:
        self.click("lock", name)
        self.until(lambda _: self.control("slider", name).get_property("disabled"))

    def type(self, name: str, text: str) -> None:
        """Give a domain a proportion."""
        self.control("number", name).send_keys(Keys.CONTROL, "a")
        self.control("number", name).send_keys(text, Keys.ENTER)

    def number(self, name: str) -> str:
        return str(self.control("number", name).get_property("value"))

    def shown(self) -> dict[str, str]:
        return {name: self.number(name) for name in DEFAULT}

    def until(self, holds: object) -> None:
        wait = WebDriverWait(self.driver, WAIT, 0.05, [StaleElementReferenceException])
        wait.until(holds)  # type: ignore[arg-type]

    def text_has(self, selector: str, text: str) -> None:
        self.until(lambda _: text in self.one(selector).text)

    def sums_to_one(self) -> None:
        assert sum(map(Decimal, self.shown().values())) == 1
        assert self.one("#sum").text == "1.0000"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    if why := browser.missing():
        pytest.skip(why)
    with browser.chromium(tmp_path_factory.mktemp("profile"), 1400, 1000) as made:
        yield made


@pytest.fixture
def page(running: Running, driver: Any) -> Page:
    """The page as it opens, and an empty log of the browser."""
    driver.get_log("browser")
    driver.get(running.url)
    opened = Page(driver)
    opened.text_has("#row-best", "worse")
    return opened


def test_a_slider_moves_the_others_and_the_numbers_are_the_predictors(
    page: Page, predictor: Predictor
) -> None:
    assert page.shown() == {name: f"{share:.4f}" for name, share in DEFAULT.items()}
    slider = page.control("slider", "code")
    assert slider.accessible_name == "code"
    for _ in range(20):  # a thousandth each; faster than the answers come
        slider.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda _: page.shown() == {"web": "0.6900", "code": "0.2200", "papers": "0.0900"})
    page.sums_to_one()
    page.type("papers", "0.3")
    page.until(lambda _: page.number("web") == "0.5850")
    page.sums_to_one()
    assert page.control("slider", "web").get_property("value") == "0.585"
    copied = json.loads(page.one("#copy-text").text)
    assert copied == {name: float(text) for name, text in page.shown().items()}
    params = {"reference": DEFAULT, "domain_intervals": True}
    rows = pd.DataFrame([keys.with_prefix(keys.MIXTURE, copied)])
    answer = predictor.loaded.predict(rows, params=params).iloc[0]
    low, high = answer["objective_low"], answer["objective_high"]
    page.text_has("#row-current", f"{answer['objective']:.4f} [{low:.4f}, {high:.4f}]")
    ends = (answer[f"difference{end}"] for end in ("", "_low", "_high"))
    mean, low, high = (f"{x:+.4f}".replace("-", "−") for x in ends)
    assert f"{mean} [{low}, {high}]" in page.one("#row-default").text
    losses = page.one("#losses").text
    for name in predictor.val_domains:
        assert f"{answer[keys.VAL_LOSS + name]:.4f}" in losses


def test_a_lock_holds_in_moves_and_in_a_search_from_here(page: Page) -> None:
    page.lock("code")
    assert page.driver.switch_to.active_element.accessible_name == "lock code"
    code = page.number("code")
    page.control("slider", "papers").send_keys(Keys.PAGE_UP)
    page.until(lambda _: page.number("papers") == "0.2000")
    assert page.number("code") == code
    page.click("search")
    page.text_has("#found", "Take it")
    assert "certified by a bound of the law" in page.one("#found").text
    before = page.one("#row-current").text
    page.click("take")
    page.until(lambda _: page.one("#row-current").text != before)
    assert page.number("code") == code
    page.sums_to_one()


def test_an_answer_that_comes_too_late_is_refused(page: Page) -> None:
    page.driver.execute_script(
        """const { page } = window.dash_clientside, { show } = page;
        window.shown = [];
        page.show = (state, ...ids) => { window.shown.push(state); return show(state, ...ids); };"""
    )
    for text in ("0.5", "0.4"):
        page.type("web", text)
        page.text_has("#copy-text", f'"web": {text}')
    late = """const [first, last] = [window.shown[0], window.shown.at(-1)];
        window.shown = [];
        window.dash_clientside.set_props("state", { data: first });
        return last.turn"""
    turn = page.driver.execute_script(late)
    back = "return window.shown.length > 1 && window.shown.at(-1).turn"
    page.until(lambda _: page.driver.execute_script(back) == turn)
    assert page.number("web") == "0.4000"


def test_the_mixture_can_be_copied(page: Page) -> None:
    page.driver.find_element(By.XPATH, "//label[contains(., 'study YAML')]").click()
    page.text_has("#copy-text", "default_mixture:")
    page.one("#copy-button").click()
    page.until(lambda _: page.one("#copied").text in ("copied", "selected: press Ctrl+C"))


def test_the_page_asks_nobody_else_and_has_no_errors(page: Page, running: Running) -> None:
    page.lock("code")
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    asked = page.driver.execute_script(script)
    assert len(asked) > 5
    assert all(name.startswith(running.url) for name in asked)
    driver: Any = page.driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_foreign_page_is_refused_and_nothing_may_frame_it(page: Page, running: Running) -> None:
    """By requests, and by a page of another origin in the browser."""
    host = urlsplit(running.url).netloc
    assert running.answer(Host=host)[0] == 200
    for headers in (
        {"Host": "evil.example"},
        {"Host": host, "Origin": "https://evil.example"},
        {"Host": host, "Sec_Fetch_Site": "cross-site"},
    ):
        for path, method in (("_dash-layout", "GET"), ("_dash-update-component", "POST")):
            status, text = running.answer(path, method, **headers)
            assert status == 403
            assert text.startswith("refused: ")
            assert text.count("\n") == 1
    large = {"Host": host, "Content_Length": str(2**20 + 1), "Content_Type": "application/json"}
    assert running.answer("_dash-update-component", "POST", **large)[0] == 413
    page.driver.get("data:text/html,<title>evil</title>")
    script = """const done = arguments[arguments.length - 1];
        fetch(arguments[0] + "_dash-layout", {mode: "no-cors"}).then(
            (answer) => done(answer.type), (error) => done("failed"))"""
    assert page.driver.execute_async_script(script, running.url) == "failed"
    connection = http.client.HTTPConnection(host)
    connection.request("GET", "/")
    got = connection.getresponse()
    assert got.getheader("X-Frame-Options") == "DENY"
    assert "frame-ancestors 'none'" in str(got.getheader("Content-Security-Policy"))
    assert got.getheader("Access-Control-Allow-Origin") is None


def test_ctrl_c_ends_it_well(registered: Store) -> None:
    client = mlflow.MlflowClient(registered.uri)
    stage = f"tags.{keys.STAGE} = '{keys.EXPLORE}'"
    others = {run.info.run_id for run in client.search_runs(["0"], stage)}
    with exploring(registered) as running:
        (run,) = (r for r in client.search_runs(["0"], stage) if r.info.run_id not in others)
        assert run.info.status == "RUNNING"
        assert run.info.run_name == "explore mixture-predictor v1"
        metrics = dict(run.data.metrics)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(WAIT) == 0
        assert running.process.stdout is not None
        assert running.process.stdout.read() == "the page has ended\n"
    run = client.get_run(run.info.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", metrics)
    assert keys.ERROR not in run.data.tags


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("--host", "no host"), "explore: host: 'no host' is not an address"),
        (("--port", "web"), "explore: port: 'web' is not a number"),
        (("--model", "models:/none/1"), "explore: model 'models:/none/1' cannot be loaded"),
    ],
)
def test_a_mistake_is_one_line(
    registered: Store, parameters: tuple[str, str], message: str
) -> None:
    done = run_entry("explore", *parameters, env={"MLFLOW_TRACKING_URI": registered.uri})
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

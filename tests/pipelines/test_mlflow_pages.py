"""What a newcomer sees in MLflow's pages after an import, a fit and a search."""

from pathlib import Path

import mlflow
import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait

from tests.support import browser, pages
from tests.support.commands import run_entry
from tests.support.synthetic import joint_law, table
from training.record import keys


@pytest.fixture
def searched(store: str, tmp_path: Path) -> str:
    """A store with imported runs, a fit of them and a search."""
    table(joint_law()).to_csv(tmp_path / "runs.csv", index=False)
    for name, *parameters in (
        ("import", "--source", str(tmp_path / "runs.csv"), "--format=tidy", "--experiment=mine"),
        ("fit", "--experiment=mine", "--model=mine", "--n-params=64e6", "--tokens=3.2e9"),
        ("optimize", "--model=models:/mine/1", "--trials=20"),
    ):
        done = run_entry(name, *parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    return store


def shown(driver: WebDriver, text: str) -> None:
    """Wait until a text is on the page."""
    there = expected.presence_of_element_located((By.XPATH, f"//*[contains(., '{text}')]"))
    WebDriverWait(driver, browser.SECONDS).until(there)


def follow(driver: WebDriver, text: str) -> None:
    """Go where a link of a description leads."""
    there = (By.XPATH, f"//a[normalize-space(.)='{text}' and starts-with(@href, '#/')]")
    stale = [NoSuchElementException, StaleElementReferenceException]
    address = WebDriverWait(driver, browser.SECONDS, ignored_exceptions=stale).until(
        lambda _: driver.find_element(*there).get_attribute("href")
    )
    driver.get(str(address))  # a click would open another tab


@pytest.mark.slow
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_an_answer_leads_to_its_predictor_its_fit_and_its_runs(
    searched: str, tmp_path: Path
) -> None:
    assert not pages.dead_links()
    client = mlflow.MlflowClient()
    (search,) = client.search_runs(["0"], f"tags.{keys.STAGE} = '{keys.OPTIMIZE}'")
    assert [one.model_id for one in client.get_run(search.info.run_id).inputs.model_inputs]
    version = client.get_model_version("mine", "1")
    assert "Error on held-out mixtures" in version.description
    assert f"runs/{search.info.run_id}" in version.description
    assert all(len(value) < 20 for value in version.tags.values())
    imported = mlflow.get_experiment_by_name("mine")
    (above,) = client.search_runs([imported.experiment_id], f"tags.{keys.STAGE} = '{keys.IMPORT}'")
    (proxy, *_) = client.search_runs([imported.experiment_id], f"tags.{keys.STAGE} = 'proxy'")
    fit_id = version.run_id
    assert f"runs/{fit_id}" in above.data.tags[keys.NOTE]

    with (
        pages.served(searched, tmp_path) as address,
        browser.chromium(tmp_path / "profile") as driver,
    ):
        mode = "workflowType=machine_learning"
        driver.get(f"{address}#/experiments/0/runs/{search.info.run_id}?{mode}")
        shown(driver, "The best mixture is predicted to lower the loss")
        width = "return document.querySelector(\"img[src*='near_optimal.png']\")?.naturalWidth"
        WebDriverWait(driver, browser.SECONDS).until(lambda _: driver.execute_script(width))
        follow(driver, "mine v1")
        shown(driver, "Error on held-out mixtures")
        follow(driver, client.get_run(fit_id).info.run_name)
        shown(driver, "Losses of mixtures that were left out")
        follow(driver, above.info.run_name)
        shown(driver, "Fits of these runs")
        driver.get(f"{address}#/experiments/{imported.experiment_id}/runs?{mode}")
        shown(driver, "Which mixture of")
        follow(driver, "mixtures and losses")
        for text in ("val_loss/", "mixture/", proxy.info.run_name):
            shown(driver, text)
        follow(driver, proxy.info.run_name)
        shown(driver, proxy.info.run_id)


def test_a_description_of_the_users_stays(store: str, tmp_path: Path) -> None:
    assert store
    table(joint_law()).to_csv(tmp_path / "runs.csv", index=False)
    parameters = ("--source", str(tmp_path / "runs.csv"), "--format=tidy", "--experiment=mine")
    assert run_entry("import", *parameters).returncode == 0
    client, mine = mlflow.MlflowClient(), mlflow.get_experiment_by_name("mine")
    assert "Which mixture of" in mine.tags[keys.NOTE]
    client.set_experiment_tag(mine.experiment_id, keys.NOTE, "my own words")
    assert run_entry("import", *parameters).returncode == 0
    assert mlflow.get_experiment_by_name("mine").tags[keys.NOTE] == "my own words"

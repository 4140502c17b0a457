"""What the page does with what a user does, without a browser."""

import json
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fitting.artifact.spec import Target
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from pipelines import explore
from pipelines.command import texts
from pipelines.explorer import app, copies, layout, state
from pipelines.explorer.copies import Origin
from pipelines.explorer.explorer import Explorer
from pipelines.explorer.state import State
from tests.pipelines.explorer.conftest import DEFAULT
from tests.support import synthetic, wide
from training.record import keys
from training.record.errors import InputError

DOMAINS = synthetic.DOMAINS


@pytest.fixture
def explorer(predictor: Predictor) -> Explorer:
    made = explore.explorer(predictor, None)
    made.search_at(made.target).thread.join()
    return made


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Searches wait until this is set."""
    free, solved = threading.Event(), solve.solve

    def waits(*args: Any, **options: Any) -> solve.Answer:
        assert free.wait(60)
        return solved(*args, **options)

    monkeypatch.setattr(solve, "solve", waits)
    yield free
    free.set()


def after(explorer: Explorer, page: State, *events: dict[str, Any]) -> State:
    """The page after events, as the browser sends and keeps them."""
    for event in events:
        page = state.updated(explorer, page, json.loads(json.dumps(event)))
        page = State.from_json(json.loads(json.dumps(page.to_json())))
    return page


def test_the_numbers_are_the_predictors(explorer: Explorer, predictor: Predictor) -> None:
    page = after(
        explorer, state.first(explorer), {"kind": "slider", "name": "code", "value": "0.4"}
    )
    mixture = page.mixture(explorer)
    assert mixture == {"web": 0.6, "code": 0.4, "papers": 0.0}
    comparison = explorer.read(mixture, page.target)
    row = pd.DataFrame([keys.with_prefix(keys.MIXTURE, mixture)])
    best = explorer.search_at(page.target).best
    assert best is not None
    for name, reference in (("default", DEFAULT), ("best", best)):
        params = {"reference": reference, "domain_intervals": True}
        answer = predictor.loaded.predict(row, params=params).iloc[0]
        assert comparison.prediction.objective == answer["objective"]
        assert comparison.prediction.low == answer["objective_low"]
        mean, half = comparison.differences[name]
        assert mean == pytest.approx(answer["difference"], abs=1e-12)
        assert mean + half == pytest.approx(answer["difference_high"], abs=1e-12)
        losses, halves = comparison.by_loss[name]
        weighted = float(losses @ predictor.weights)
        assert weighted == pytest.approx(answer["difference"], abs=1e-12)
        assert (halves > 0).all()
        assert half < halves.max()
    for name in predictor.val_domains:
        assert comparison.prediction.losses_high[name] == answer[keys.VAL_LOSS_HIGH + name]


def test_a_difference_of_one_loss_is_that_of_an_objective_of_it_alone(explorer: Explorer) -> None:
    from optimization.domain import objective
    from optimization.domain.differences import Differences

    page = state.first(explorer)
    row = np.array([[0.3, 0.4, 0.3]])
    mean, half = explorer.compared(page.target)["default"].differences.by_loss(row)
    base = np.array([*DEFAULT.values()])
    for i, weights in enumerate(np.eye(len(mean[0]))):
        alone = objective.weighted(explorer.predictor, weights)
        one = Differences.of(explorer.predictor, alone, base)
        assert mean[0, i] == pytest.approx(one.mean(row)[0], abs=1e-12)
        assert half[0, i] == pytest.approx(one.half_width(row)[0], abs=1e-12)


def test_locks_bounds_and_starts(explorer: Explorer) -> None:
    page = state.first(explorer)
    assert page.mixture(explorer) == DEFAULT
    page = after(
        explorer, page, {"kind": "lock", "name": "code"},
        {"kind": "number", "name": "web", "value": "0.5"},
    )  # fmt: skip
    assert page.proportions == (0.5, 0.2, 0.3)
    page = after(explorer, page, {"kind": "high", "name": "papers", "value": "0.25"})
    assert page.proportions == (0.55, 0.2, 0.25)
    page = after(explorer, page, {"kind": "slider", "name": "papers", "value": "0.6"})
    assert page.proportions == (0.55, 0.2, 0.25)
    assert "papers can lie from 0 to 0.25" in page.message
    page = after(explorer, page, {"kind": "high", "name": "papers", "value": ""})
    assert page.bounds == {}
    page = after(explorer, page, {"kind": "start", "name": "best"})
    assert page.locked == ("code",)
    best = explorer.search_at(page.target).best
    assert best is not None
    assert [*page.mixture(explorer).values()] == pytest.approx([*best.values()], abs=1e-4)


def test_clearing_a_bound_leaves_the_other_end(predictor: Predictor) -> None:
    explorer = explore.explorer(predictor, None)
    own = replace(explorer.problem.constraints, bounds={"papers": (0.01, 0.5)})
    explorer.problem = replace(explorer.problem, constraints=own)
    page = after(
        explorer, state.first(explorer),
        {"kind": "low", "name": "papers", "value": "0.05"},
        {"kind": "high", "name": "papers", "value": "0.3"},
        {"kind": "low", "name": "papers", "value": ""},
    )  # fmt: skip
    assert page.bounds == {"papers": (None, 0.3)}
    shown = state.controls(explorer, page)
    assert (shown["low"]["papers"], shown["high"]["papers"]) == ("0.01", "0.3")
    page = after(explorer, page, {"kind": "high", "name": "papers", "value": ""})
    assert page.bounds == {}
    assert state.controls(explorer, page)["high"]["papers"] == "0.5"


def test_a_slider_that_goes_back_takes_the_others_back(explorer: Explorer) -> None:
    page = first = state.first(explorer)
    for value in ("0.4", "0.9", "1", "0.6", "0.2"):
        page = after(explorer, page, {"kind": "slider", "name": "code", "value": value})
        assert sum(page.proportions) == pytest.approx(1, abs=1e-12)
    assert page.proportions == first.proportions
    page = after(explorer, page, {"kind": "slider", "name": "code", "value": "0.9"})
    page = after(explorer, page, {"kind": "slider", "name": "web", "value": "0.2"})
    page = after(explorer, page, {"kind": "slider", "name": "code", "value": "0.2"})
    assert page.proportions != first.proportions  # another slider has moved since


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kind": "number", "name": "web", "value": "much"}, "web: 'much' is not a number"),
        ({"kind": "low", "name": "web", "value": "0.99"}, "change one of them"),
        ({"kind": "low", "name": "web", "value": "-1"}, "is not 0 <= lowest <= highest <= 1"),
        ({"kind": "slider", "name": "wbe", "value": "1"}, "'wbe' is not a domain"),
        ({"kind": "n_params", "name": "", "value": "0.5"}, "n_params: '0.5' is not an integer"),
        ({"kind": "tokens", "name": "", "value": str(2**63 - 1)}, "is not less than 9.2e+18"),
        ({"kind": "start", "name": "none"}, "the mixture 'none' is not known yet"),
        ({"kind": "take", "name": ""}, "there is no answer to take"),
    ],
)
def test_a_mistake_changes_nothing(explorer: Explorer, event: dict[str, Any], message: str) -> None:
    bounded = {"kind": "low", "name": "code", "value": "0.15"}
    page = after(explorer, state.first(explorer), bounded)
    wrong = after(explorer, page, event)
    assert message in wrong.message
    assert replace(wrong, message="", turn=page.turn) == page


def test_a_message_stays_until_the_next_change(explorer: Explorer) -> None:
    page = after(
        explorer, state.first(explorer),
        {"kind": "number", "name": "web", "value": "2"},
        {"kind": "tick", "name": ""},
    )  # fmt: skip
    assert "web can lie from 0 to 1" in page.message
    assert after(explorer, page, {"kind": "lock", "name": "web"}).message == ""


def test_a_search_from_here_keeps_locks_bounds_and_the_region(
    explorer: Explorer, blocked: threading.Event
) -> None:
    page = after(
        explorer, state.first(explorer),
        {"kind": "lock", "name": "code"},
        {"kind": "high", "name": "papers", "value": "0.3"},
        {"kind": "radius", "name": "", "value": "0.1"},
        {"kind": "search", "name": ""},
    )  # fmt: skip
    search = explorer.searches.get(page.here)
    assert search is not None
    again = after(explorer, page, {"kind": "search", "name": ""})
    assert "a search is running" in again.message
    assert explorer.searches.get(page.here) is search
    blocked.set()
    search.thread.join()
    assert search.error is None
    parts = str(layout.found(explorer, page, search))
    assert "certified by a bound of the law" in parts
    assert "Take it" in parts
    page = after(explorer, page, {"kind": "take", "name": ""})
    assert layout.found(explorer, page, search) == []
    assert page.proportions[1] == 0.2
    assert page.proportions[2] == pytest.approx(0.2, abs=2e-4)  # the region's edge
    assert sum(page.proportions) == pytest.approx(1, abs=1e-12)


def test_each_page_takes_the_answer_of_its_own_search(explorer: Explorer) -> None:
    pages = []
    for code in ("0.3", "0.1"):
        page = after(
            explorer, state.first(explorer),
            {"kind": "number", "name": "code", "value": code},
            {"kind": "lock", "name": "code"},
            {"kind": "search", "name": ""},
        )  # fmt: skip
        pages.append(page)
    for page in pages:
        search = explorer.searches.get(page.here)
        assert search is not None
        search.thread.join()
    taken = [after(explorer, page, {"kind": "take", "name": ""}) for page in pages]
    assert [page.proportions[1] for page in taken] == [0.3, 0.1]


def test_another_target_has_another_best_mixture(explorer: Explorer) -> None:
    page = after(explorer, state.first(explorer), {"kind": "tokens", "name": "", "value": "8e8"})
    assert page.target == Target(64e6, 8e8)
    search = explorer.search_at(page.target)
    search.thread.join()
    found = after(explorer, page, {"kind": "tick", "name": ""})
    assert ("best" in page.known, "best" in found.known) == (False, True)
    comparison = explorer.read(DEFAULT, page.target)
    assert (
        comparison.prediction.objective
        == explorer.predictor.at(64e6, 8e8).predict_one(DEFAULT).objective
    )
    (line,) = comparison.warnings
    assert "4× the parameters of the largest fitted model (16M)." in line
    beyond = explorer.read(DEFAULT, explorer.target).warnings
    assert "4× the most tokens of a fitted run (800M)" in beyond[-1]


def test_a_search_that_waits_is_dropped_when_its_page_goes_on(
    explorer: Explorer, blocked: threading.Event
) -> None:
    """Of the targets typed in one after another only the first and the last are searched."""
    pages = [state.first(explorer) for _ in range(2)]
    typed = [{"kind": "tokens", "name": "", "value": f"{8 + i}e8"} for i in range(4)]
    pages[0] = after(explorer, pages[0], typed[0])
    searches = [explorer.search_at(pages[0].target)]
    while not searches[0].begun:
        time.sleep(0.001)
    pages[1] = after(explorer, pages[1], typed[2])
    for event in typed[1:]:
        pages[0] = after(explorer, pages[0], event)
        searches.append(explorer.search_at(pages[0].target))
    blocked.set()
    for search in searches:
        search.thread.join()
    assert [search.begun for search in searches] == [True, False, True, True]  # one by the other


def test_a_strange_mixture_warns(explorer: Explorer) -> None:
    code = {"web": 0.0, "code": 1.0, "papers": 0.0}
    spec: Any = explorer.predictor.spec
    seen = spec.explored
    narrow = replace(
        seen, lowest={**seen.lowest, "web": 0.1}, highest={**seen.highest, "code": 0.9}
    )
    predictor = replace(explorer.predictor, spec=replace(spec, explored=narrow))
    strange = explore.explorer(predictor, None).read(code, explorer.target)
    assert strange.warnings[0] == (
        "Outside the bounds of the fit (bounds: web at least 0.1 and 1 more). The law may "
        "be wrong here."
    )
    assert not [line for line in explorer.read(DEFAULT, explorer.target).warnings if "Out" in line]
    few = replace(spec, mixtures=[[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    alone = explore.explorer(replace(explorer.predictor, spec=few), None)
    far = alone.read(code, explorer.target).warnings
    assert f"{strange.prediction.distance:.3f} from the nearest fitted mixture: farther" in far[0]
    assert "than any fitted mixture lies from its nearest neighbour (0.100)" in far[0]


def test_what_is_copied_can_be_pasted(explorer: Explorer, registered: Any) -> None:
    mixture = {"web": 0.4321, "code": 0.3, "papers": 0.2679}
    origin = Origin(registered.model, "0", "my study.yaml", "64M", "500", Target(64e6, 8e8))
    scale = {"n_params": 64e6, "tokens": 8e8}
    text = {form: copies.copied(form, mixture, origin, scale, DEFAULT) for form in state.FORMATS}
    assert texts.mixture(text["JSON"], DOMAINS) == mixture
    assert yaml.safe_load(text["YAML"]) == {"default_mixture": mixture}
    listed = text["YAML"].partition("sweep.mixtures:\n")[2].replace("#", " ")
    assert yaml.safe_load(listed) == [mixture]
    words = shlex.split(text["train"])
    assert words[:8] == ["mlflow", "run", ".", "--env-manager", "uv", "-e", "train", "-P"]
    given = dict(word.split("=", 1) for word in words[8::2])
    assert (given["study"], given["steps"]) == ("my study.yaml", "500")
    other = copies.copied("train", mixture, origin, {**scale, "tokens": 4e8}, DEFAULT)
    comment = (
        "# trains the study's target, of 64M parameters and 800M tokens; "
        "the page is at 64M parameters and 400M tokens"
    )
    assert other.splitlines() == [comment, text["train"]]
    assert texts.mixture(given["mixture"], DOMAINS) == mixture
    printed: list[Any] = []
    exec(text["Python"], {"print": printed.append})  # as a user would
    (answer,) = printed
    predicted = explorer.predict(mixture, Target(**scale))
    assert answer.loc["objective", 0] == predicted.objective
    assert answer.loc["difference", 0] == pytest.approx(
        explorer.read(mixture, Target(**scale)).differences["default"][0], abs=1e-12
    )


@pytest.mark.usefixtures("registered")
def test_hundreds_of_domains_stay_usable() -> None:
    explorer = explore.explorer(predictors.load(wide.register(200, 20)), None)
    explorer.search_at(explorer.target).thread.join()
    page = state.first(explorer)
    assert len(page.shown) == state.SHOWN
    page = after(
        explorer, page, {"kind": "lock", "name": page.shown[3]},
        {"kind": "filter", "name": "", "value": "DOMAIN-19"},
    )  # fmt: skip
    assert {f"domain-19{i}" for i in range(10)} < set(page.shown)
    assert page.locked[0] in page.shown
    page = after(explorer, page, {"kind": "slider", "name": "domain-195", "value": "0.2"})
    assert page.proportions[195] == 0.2
    assert round(sum(page.proportions) * 1e5) == 100_000
    rest = str(layout.rest(explorer, page))
    assert f"and {200 - len(page.shown)} further domains" in rest
    parts = app.filled(explorer, Origin("m", "0"), page)
    assert len(parts) == len(app.FILLED)
    assert "and 6 further losses" in str(parts[app.FILLED.index("losses")])


def test_a_study_gives_its_own_default(predictor: Predictor) -> None:
    problem = explore.explorer(predictor, None).problem
    assert explore.default(predictor, problem, None) == ("default", DEFAULT)
    own = replace(problem, reference={"web": 0.5, "code": 0.5})
    name, mixture = explore.default(predictor, own, None)
    assert (name, mixture) == ("reference", {"web": 0.5, "code": 0.5, "papers": 0.0})
    spec: Any = predictor.spec
    spec = replace(spec, default_mixture={})
    name, mixture = explore.default(replace(predictor, spec=spec), problem, None)
    assert "uniform" in name


def test_other_models_are_refused(registered: Any) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        predictors.load(explore.pinned("models:/none@champion"))
    assert explore.pinned("models:/mixture-predictor@champion") == registered.model

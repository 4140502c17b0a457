"""The answer to a problem: a registered predictor searched, explained, logged, and its mistakes."""

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from optimization.domain import predictor as predictors
from optimization.domain.constraints import Constraints
from optimization.domain.predictor import Predictor
from optimization.mixture import solve
from optimization.mixture.report import report
from optimization.mixture.solve import BEST, Answer, Problem
from optimization.search.search import Front, SearchResult
from pipelines import entry, optimize, prepare
from pipelines.command import table
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.search_problem import Overrides
from tests.support import synthetic
from tests.support.logged_runs import fit_table, log_runs
from tests.support.stores import empty_store
from tests.support.studies import WriteStudy
from training.record import keys
from training.record.errors import InputError

DEFAULT = {"web": 0.7, "code": 0.2, "papers": 0.1}
TRIALS = 60


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """That of noisy runs of a known law, whose sweep told of a default mixture."""
    with empty_store(tmp_path_factory.mktemp("answer")):
        table = synthetic.table(synthetic.joint_law(), noise=0.002)
        told = keys.with_prefix(keys.DEFAULT_MIXTURE, DEFAULT)
        parent = {key: str(value) for key, value in told.items()}
        done = fit_table(table, log_runs(table, parent), target=dict(synthetic.TARGET))
        yield predictors.load(done.registered.uri)


@pytest.fixture(scope="module")
def solved(predictor: Predictor) -> Answer:
    return solve.solve(predictor, Problem(trials=TRIALS))


def true_losses(mixtures: np.ndarray) -> np.ndarray:
    """The truth's mean loss at the target, (n,)."""
    ones = np.ones(len(mixtures))
    n_params, tokens = synthetic.TARGET["n_params"], synthetic.TARGET["tokens"]
    law = synthetic.joint_law()
    return law.predict(mixtures, n_params * ones, tokens * ones).mean(axis=1)


@pytest.mark.slow
def test_the_best_mixture_is_the_truths_and_proven(solved: Answer) -> None:
    everywhere = np.random.default_rng(0).dirichlet(np.ones(3), 20_000)
    best = np.array([[*solved.best.values()]])
    assert true_losses(best)[0] < true_losses(everywhere).min() + 0.002
    found = solved.search
    assert isinstance(found, SearchResult)
    assert found.bound is not None
    assert found.value - found.bound < 1e-6
    default = np.array([[*DEFAULT.values()]])
    gain = (true_losses(default) - true_losses(best))[0]
    assert solved.gain == pytest.approx(gain, abs=0.01)
    assert solved.gain == pytest.approx(gain, abs=solved.gain_half_width)
    assert 0 < solved.gain_half_width < solved.gain
    assert list(solved.mixtures) == ["best", "default", "uniform", "best observed"]


def test_the_gain_in_steps_is_the_step_laws(solved: Answer) -> None:
    assert solved.steps is not None
    at, weights = solved.predictor.at, solved.weights
    n_params, tokens = solved.predictor.n_params, solved.predictor.tokens

    def loss(name: str, share: float) -> float:
        mixture = np.array([[*solved.mixtures[name].values()]])
        return float(at(n_params, share * tokens).surface.predict(mixture)[0] @ weights)

    assert solved.steps.fewer is not None
    assert solved.steps.fewer < 1
    assert loss("best", solved.steps.fewer) == pytest.approx(loss("default", 1.0), abs=1e-9)
    if solved.steps.more is not None:
        assert loss("default", solved.steps.more) == pytest.approx(loss("best", 1.0), abs=1e-9)


def test_what_is_free_is_told_from_what_is_decided(solved: Answer, predictor: Predictor) -> None:
    """The ranges against a dense sample of the near-optimal set."""
    sensitivity = solved.sensitivity
    assert sensitivity is not None
    mixtures = np.random.default_rng(1).dirichlet(np.ones(3), 200_000)
    near = mixtures[solved.differences(mixtures) <= 0]
    assert len(near) > 100
    assert sensitivity.ranges["lowest"].to_numpy() == pytest.approx(near.min(axis=0), abs=0.01)
    assert sensitivity.ranges["highest"].to_numpy() == pytest.approx(near.max(axis=0), abs=0.01)
    # by each law of the bootstrap: no mixture beats its optimum
    for surface, optimum in zip(predictor.replicates[:5], sensitivity.optima, strict=False):
        own = surface.predict(np.vstack([optimum, mixtures[:20_000]])) @ predictor.weights
        assert own[0] <= own[1:].min() + 1e-9
    assert (sensitivity.regrets >= 0).all()
    # more weight on a domain moves the mixture and costs by the old weights
    assert (sensitivity.by_weight["cost"] >= -1e-9).all()
    assert sensitivity.by_weight["moved"].max() > 0.01
    assert len(sensitivity.by_weight) == 2 * len(synthetic.VAL_DOMAINS)
    # a size's own optimum is that of its runs alone, near the truth's; the target comes last
    scales = sensitivity.by_scale
    assert scales["n_params"].tolist() == [*synthetic.SIZES, synthetic.TARGET["n_params"]]
    assert scales.filter(like=keys.MIXTURE).to_numpy() == pytest.approx(
        np.tile([*solved.best.values()], (4, 1)), abs=0.1
    )


@pytest.mark.slow
def test_pessimism_and_the_worst_domain(predictor: Predictor, solved: Answer) -> None:
    careful = solve.solve(predictor, Problem(pessimistic=True, trials=TRIALS))
    assert careful.predictions[BEST].high <= solved.predictions[BEST].high + 1e-9
    assert isinstance(careful.search, SearchResult)
    assert careful.search.value == pytest.approx(careful.predictions[BEST].high, abs=1e-9)
    everywhere = np.random.default_rng(2).dirichlet(np.ones(3), 20_000)
    high = predictor.surface.predict(everywhere) @ predictor.weights
    high += predictor.half_width(predictor.weights, everywhere)
    assert high.min() - 1e-3 < careful.search.value <= high.min()
    assert careful.search.bound is None
    assert any("not certified" in line for line in report(careful))
    fair = solve.solve(predictor, Problem(objectives=("worst",), trials=TRIALS))
    excess = {
        name: max(p.losses[d] - fair.predictions["default"].losses[d] for d in p.losses)
        for name, p in fair.predictions.items()
    }
    assert excess["best"] <= min(excess.values()) + 1e-4


def test_a_chosen_pull_keeps_most_of_the_gain(predictor: Predictor, solved: Answer) -> None:
    pulled = solve.solve(predictor, Problem(pull=None, reference=DEFAULT, trials=TRIALS))
    assert pulled.compared == "reference"
    assert pulled.pull > 0
    assert 0.9 * solved.gain <= pulled.gain <= solved.gain + 1e-9
    assert pulled.path is not None
    apart = pulled.path.set_index("strength")["divergence"]
    assert apart[pulled.pull] < apart[0.0]
    none = {"web": 0.5, "code": 0.5, "papers": 0.0}
    with pytest.raises(InputError, match="it has none of 'papers', so that any of it lies infinit"):
        solve.solve(predictor, Problem(pull=0.1, reference=none, trials=TRIALS))
    kept = Constraints({"papers": (0.0, 0.0)})
    held = solve.solve(
        predictor, Problem(pull=0.1, reference=none, constraints=kept, trials=TRIALS)
    )
    assert held.best["papers"] == 0


def overrides(**given: str) -> Overrides:
    """The parameters of a search, as texts."""
    return table.read(Overrides, given)


@pytest.mark.slow
@pytest.mark.usefixtures("predictor")
def test_the_entry_point_logs_an_answer_without_drowning_the_ui(predictor: Predictor) -> None:
    with entry.stage(keys.OPTIMIZE) as run:
        wanted = search_problem.changed(
            search_problem.of_predictor(predictor),
            predictor,
            None,
            overrides(trials="200", bounds="web+code=:0.6"),
        )
        found = optimize.optimize(predictor, wanted)
    assert found.best["web"] + found.best["code"] <= 0.6 + 1e-9
    client = mlflow.MlflowClient()
    children = f"tags.{keys.PARENT} = '{run.info.run_id}'"
    assert client.search_runs([run.info.experiment_id], children) == []
    logged = client.get_run(run.info.run_id).data
    assert {"gain", "steps_fewer", "gap", "objective/best", "highest/web"} <= set(logged.metrics)
    assert float(logged.params["mixture/web"]) == found.best["web"]
    assert "predicted to lower the loss by" in logged.tags["mlflow.note.content"]
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/trials.json")
    trials = pd.read_json(StringIO(text), orient="split")
    assert (trials["kind"] == "polish").sum() == len(trials) - 200
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {
        f"figures/{name}.png"
        for name in (
            "best_mixture", "trials", "parallel_coordinates", "map", "pull", "near_optimal",
            "loss_against_proportions", "sensitivity", "optimum_by_scale",
        )
    }  # fmt: skip


def test_one_bundle_of_all_domains_leaves_one_mixture(predictor: Predictor) -> None:
    shares = {"web": 0.5, "code": 0.3, "papers": 0.2}
    everything = Constraints(bundles={"all": shares})
    solved = solve.solve(predictor, Problem(constraints=everything, trials=TRIALS))
    assert solved.best == pytest.approx(shares)
    assert solved.sensitivity is not None
    assert np.ptp(solved.sensitivity.ranges[["lowest", "highest"]], axis=1).max() < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("predictor")
def test_several_objectives_and_children_on_request(predictor: Predictor) -> None:
    wanted = search_problem.changed(
        search_problem.of_predictor(predictor),
        predictor,
        None,
        overrides(trials="30", objective="code,deviation"),
    )
    with entry.stage(keys.OPTIMIZE) as run:
        found = optimize.optimize(predictor, wanted, trials_below=run)
    assert isinstance(found.search, Front)
    front = found.search.trials[found.search.trials["on_front"]]
    ordered = front.sort_values("val_loss/code")
    assert (np.diff(ordered["deviation"]) <= 1e-12).all()
    assert front["deviation"].min() == pytest.approx(0, abs=1e-12)  # the default itself
    client = mlflow.MlflowClient()
    children = client.search_runs(
        [run.info.experiment_id], f"tags.{keys.PARENT} = '{run.info.run_id}'"
    )
    assert len(children) == len(found.search.trials)
    assert {"val_loss/code", "deviation"} == set(children[0].data.metrics)
    assert {"mixture/web", "mixture/code", "mixture/papers"} == set(children[0].data.params)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bounds": "web=0.5,cod=0.1"}, "bounds: cod: unknown domain 'cod'"),
        ({"bounds": "web"}, "bounds: 'web' is not name=value"),
        ({"bounds": "web=a:b"}, "bounds: 'web': 'a' is not a number"),
        ({"bounds": "web=0.8:,code+papers=0.4:"}, "no mixture satisfies all of"),
        ({"objective": "los"}, "objective: 'los'; it is loss, worst, or several"),
        ({"objective": "loss,worst"}, "objective: 'worst'; it is loss, deviation, news"),
        ({"objective": "loss,loss"}, "objective: 'loss' is given twice"),
        ({"epochs": "4"}, "epochs: the number of available tokens is unknown"),
        ({"available": "web=1e9", "epochs": "0"}, "epochs: 0; it must be more than 0"),
        ({"weights": "code=1"}, "weights: no weight for news, papers, books"),
        ({"pull": "-1"}, "pull: -1; it must be >= 0, or auto"),
        ({"pull": "1", "objective": "code,news"}, "pull: it belongs to one objective"),
        ({"pull": "strong"}, "pull: 'strong' is not a number"),
        ({"reference": "web=0.5,code=0.4"}, "the proportions sum to 0.9"),
        ({"trust_region": "2"}, "trust_region: 2; it is a share of tokens, from 0 to 1"),
    ],
)
@pytest.mark.usefixtures("predictor")
def test_a_mistake_is_named(predictor: Predictor, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        solve.solve(
            predictor,
            search_problem.changed(
                search_problem.of_predictor(predictor), predictor, None, overrides(**parameters)
            ),
        )
    assert message in str(raised.value)


def test_a_trust_region_of_nothing_leaves_the_fitted_mixtures(predictor: Predictor) -> None:
    found = solve.solve(predictor, Problem(constraints=Constraints(trust=0.0), trials=20))
    assert found.predictions[BEST].distance == pytest.approx(0, abs=1e-9)
    losses = predictor.surface.predict(predictor.fitted) @ predictor.weights
    assert found.loss(BEST) == pytest.approx(losses.min(), abs=1e-9)


def test_a_study_asks_for_the_search(
    predictor: Predictor, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["bounds"] = {"news": [0.1, 0.9], "math": [0.0, 0.5]}
    miniature["search"] = {
        "trials": 20, "seed": 3, "objective": "worst", "epochs": 2, "trust_region": 0.3,
        "bounds": {"news+code": [0.2, 0.8], "news": [0.2, 0.7]}, "pull": "auto",
        "reference": {"news": 0.5, "code": 0.5}, "pessimistic": True,
    }  # fmt: skip
    plan = studies.load(write_study(miniature))
    explored = SimpleNamespace(
        lowest={"news": 0.0, "code": 0.0, "math": 0.2},
        highest={"news": 1.0, "code": 1.0, "math": 0.2},
        bundles={},
    )
    spec: Any = SimpleNamespace(explored=explored, continual=None)
    asked = replace(predictor, domains=("math", "news", "code"), spec=spec)
    with pytest.raises(InputError, match="'miniature' is not prepared, so the number of its"):
        search_problem.of_study(plan, asked)
    corpus = prepare.prepare(plan).corpus
    found = search_problem.of_study(plan, asked)
    rules = found.constraints
    assert rules.bounds == {
        "math": (0.2, 0.2),  # it never varied: no search moves it
        "news": (0.2, 0.7),
        "code": (0.0, 1.0),
        "news+code": (0.2, 0.8),
    }
    assert rules.available == {n: f.train_tokens for n, f in corpus.domains.items()}
    assert (rules.epochs, rules.trust) == (2, 0.3)
    assert (found.objectives, found.pull, found.pessimistic) == (("worst",), None, True)
    assert (found.trials, found.seed, found.reference) == (20, 3, {"news": 0.5, "code": 0.5})
    assert found.weights is None  # the study states none
    miniature["validation"] |= {"weights": {"news": 3, "code": 1, "math": 0}}
    stated = search_problem.of_study(studies.load(write_study(miniature)), asked).weights
    assert stated == {"news": 0.75, "code": 0.25, "papers": 0, "books": 0}
    miniature["validation"] |= {"weights": {"news": 3, "code": 1, "math": 1}}
    with pytest.raises(InputError, match="study 'miniature' weighs 'math', which the predictor"):
        search_problem.of_study(studies.load(write_study(miniature)), asked)
    given = search_problem.changed(
        found,
        asked,
        plan,
        overrides(epochs="1", pull="0.5", pessimistic="false", trials="7", bounds="code=0.1"),
    )
    assert given.constraints.bounds["code"] == (0.1, 0.1)
    assert given.constraints.available == rules.available
    assert (given.constraints.epochs, given.pull, given.pessimistic, given.trials) == (
        1, 0.5, False, 7,
    )  # fmt: skip
    with pytest.raises(InputError, match="study 'miniature' has the domains news, code, math; the"):
        search_problem.of_study(plan, predictor)

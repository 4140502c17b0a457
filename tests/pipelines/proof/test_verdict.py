"""What the closing summary says: each verdict, of a study whose runs are recorded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlflow
import numpy as np
import pytest

from fitting import registry
from fitting.selection.forms import Options
from optimization.domain import predictor as predictors
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import BEST, Answer
from pipelines import entry, fit, optimize
from pipelines.command.table import read
from pipelines.prepare import prepare
from pipelines.proof import targets, verdict
from pipelines.runs.fitted_runs import purpose_of
from pipelines.runs.proxy_runs import proxy_runs
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from pipelines.study.search_problem import Overrides
from pipelines.sweep import sweep
from tests.support.stores import empty_store
from tests.support.studies import miniature_study, written
from training.engine import trainer as trainers
from training.engine.devices import Machines
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_tags
from training.run import Run, fingerprint

ALONE = Machines(workers=1, ranks=1)
Losses = Mapping[str, Sequence[float]]  # mixture → what each seed's loss is above the predicted one


@dataclass(frozen=True)
class Recorded:
    """A study whose proxies are recorded, not trained, and what was found with them."""

    prepared: Prepared
    predictor: Predictor
    answer: Answer


def losses(run: Run, tokens: int, off: np.ndarray) -> np.ndarray:
    """A law that a fit can find, and how far a run is off it, (V,)."""
    shares = np.array([*run.mixture.values()])
    scale = 0.1 * (run.size.n_params / 3e3) ** -0.3 + 0.3 * (tokens / 1e3) ** -0.4
    return 1.5 + 0.9 * np.exp(-2 * np.sqrt(shares)) + scale + off


def always(values: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda _: values


def log_complete(run: Run, values: Callable[[int], np.ndarray]) -> None:
    """What a worker leaves of a run, with these losses at a number of tokens."""
    steps = trainers.evaluation_steps(run.training)
    tokens = tuple(step * run.training.tokens_per_step for step in steps)
    series = tuple(tuple(values(t).tolist()) for t in tokens)
    tags = {
        keys.STAGE: run.stage,
        keys.STUDY: run.study,
        keys.FINGERPRINT: fingerprint(run),
        keys.COMPLETE: "true",
        **history_tags(History(tuple(run.mixture), tuple(steps), tokens, series)),
    }
    with mlflow.start_run(run_name=run.name, nested=True, tags=tags) as active:
        mlflow.MlflowClient().delete_tag(active.info.run_id, keys.PARENT)
        mlflow.log_params(
            {**keys.with_prefix(keys.MIXTURE, run.mixture), "n_params": run.size.n_params}
        )


def found(prepared: Prepared, noise: float) -> Recorded:
    """Record the proxies in the current experiment, then sweep, fit and search as commands do."""
    rng = np.random.default_rng(0)
    with entry.stage(keys.MAIN) as active:
        for run in proxy_runs(prepared):
            off = noise * rng.standard_normal(len(prepared.study.domains))
            log_complete(run, partial(losses, run, off=off))
        with entry.stage(keys.SWEEP) as sweeping:
            sweep(prepared, ALONE, sweeping)
        with entry.stage(keys.FIT):
            fitted = fit.fit(
                [active.info.experiment_id],
                f"tags.{keys.STUDY} = '{prepared.tag}'",
                prepared.study.model,
                Options(("joint",), compare=False),
                purpose=purpose_of(prepared.study, prepared),
            )
        predictor = predictors.load(fitted.registered.uri)
        with entry.stage(keys.OPTIMIZE):
            problem = search_problem.of_study(prepared.study, predictor)
            answer = optimize.optimize(predictor, problem)
    return Recorded(prepared, predictor, answer)


def changed(recorded: Recorded, **change: Any) -> Prepared:
    """Its study with other sections."""
    prepared = recorded.prepared
    return replace(prepared, study=prepared.study.model_copy(update=change))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, list[str]]) -> Iterator[str]:
    """A store and the file of a study with ten mixtures at three sizes."""
    folder = tmp_path_factory.mktemp("verdict")
    with empty_store(folder):
        given = miniature_study(folder, texts)
        given["sizes"]["middle"] = {"hidden_size": 24, "layers": 1, "heads": 2}
        given["sweep"] = {"mixtures": 10, "sizes": ["tiny", "middle", "small"]}
        given["training"]["evaluations"] = 5
        yield written(folder, given)


@pytest.fixture(scope="module")
def recorded(study: str) -> Recorded:
    plan = studies.load(study)
    with mlflow.start_run():
        prepared = prepare(plan)
    return found(prepared, noise=0.001)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> Iterator[None]:
    """One of the test's own, so that its targets are no other test's."""
    mlflow.set_experiment(request.node.name)
    yield
    mlflow.set_experiment(experiment_id="0")


def proven(study: Recorded, above: Losses) -> list[str]:
    """What is said of targets whose losses lie so far above the predicted ones."""
    answer = study.answer
    mixtures = targets.to_train(answer)
    with entry.stage(keys.VERIFY) as active:
        for key, run in targets.target_runs(study.prepared, mixtures).items():
            name = key.rsplit("-", 1)[0]
            off = above.get(name, (0.001, -0.001))[run.seed]
            at_end = np.array([*answer.predictions[name].losses.values()]) + off
            log_complete(run, always(at_end))
        proof = targets.prove(study.prepared, study.predictor, mixtures, ALONE, active)
    return verdict.report(proof, registry.standing(study.predictor.uri))


def words(lines: Sequence[str]) -> str:
    """The verdict, without the table below it."""
    return " ".join(" ".join(lines[: list(lines).index("")]).split())


@pytest.mark.slow
@pytest.mark.usefixtures("experiment")
def test_better_and_nothing_speaks_against_it(recorded: Recorded) -> None:
    told = words(proven(recorded, {}))
    assert told.startswith("BETTER: the best mixture has a lower loss than the default mixture.")
    gain = recorded.answer.gain
    assert f"Measured gain: {gain:.4f} [" in told
    assert f"with 2 seeds each; predicted: {gain:.4f} [" in told
    assert told.endswith(verdict.CLEAR)


@pytest.mark.usefixtures("experiment")
def test_not_told_apart(recorded: Recorded) -> None:
    told = words(proven(recorded, {BEST: (0.2, -0.2)}))
    assert told.startswith("NO CLEAR DIFFERENCE: the measurements cannot separate the best mixture")


@pytest.mark.usefixtures("experiment")
def test_worse_and_why(recorded: Recorded) -> None:
    lines = proven(recorded, {BEST: (0.5, 0.502), "uniform": (0.1, 0.1)})
    told = words(lines)
    assert told.startswith("WORSE: the best mixture has a higher loss than the default mixture.")
    assert "- uniform measured 0." in told
    assert "lower than best" in told
    assert "- the measured gain lies outside what was predicted" in told
    # the same study once more, and what it measured before was better
    other = proven(recorded, {})
    assert "trained before" not in words(other)  # found trained: the same targets
    changed = Recorded(
        recorded.prepared,
        recorded.predictor,
        optimize_within(recorded, {"news": (0.5, 0.6)}),
    )
    told = words(proven(changed, {BEST: (0.6, 0.602)}))
    assert "- a target that was trained before measured lower" in told


def optimize_within(study: Recorded, bounds: dict[str, tuple[float, float]]) -> Answer:
    """The answer when the search is bound further."""
    wanted = search_problem.of_study(study.prepared.study, study.predictor)
    rules = replace(wanted.constraints, bounds={**wanted.constraints.bounds, **bounds})
    with entry.stage(keys.OPTIMIZE):
        return optimize.optimize(study.predictor, replace(wanted, constraints=rules))


@pytest.mark.slow
@pytest.mark.usefixtures("experiment")
def test_not_champion(recorded: Recorded) -> None:
    challenger = found(recorded.prepared, noise=0.01)
    told = words(proven(challenger, {}))
    assert f"version {challenger.predictor.uri.rsplit('/', 1)[1]} of 'mixture-predictor'" in told
    assert "which is not the champion: champion is version 1, whose cross-validated error" in told


@pytest.mark.slow
@pytest.mark.usefixtures("experiment")
def test_not_to_be_believed(recorded: Recorded) -> None:
    misled = found(changed(recorded, model="misled"), noise=0.5)
    told = words(proven(misled, {}))
    assert told.startswith("NOT TO BE BELIEVED: the law does not describe these runs: it predicts")
    assert "For what it is worth, the best mixture" in told
    assert verdict.CLEAR not in told


@pytest.mark.usefixtures("experiment")
def test_a_search_for_another_objective_is_no_silent_verdict(recorded: Recorded) -> None:
    search = recorded.prepared.study.search.model_copy(update={"objective": "worst"})
    other = replace(recorded, prepared=changed(recorded, search=search))
    told = words(proven(other, {}))
    assert "- the search was for the objective 'worst'; what is compared here is the" in told


def test_a_fit_of_a_study_is_for_that_study_and_not_for_the_newest_sweep(
    recorded: Recorded,
) -> None:
    """Weights and bounds are no part of the tag by which runs are selected."""
    weighed = recorded.prepared.study.validation.model_copy(
        update={"weights": {"news": 1.0, "code": 0.0, "math": 0.0}}
    )
    prepared = changed(recorded, validation=weighed, bounds={"news": (0.0, 0.9)}, model="other")
    other = prepared.study
    with entry.stage(keys.FIT) as active:
        fitted = fit.fit(
            [active.info.experiment_id],
            f"tags.{keys.STUDY} = '{prepared.tag}'",
            other.model,
            Options(("joint",), compare=False),
            purpose=purpose_of(other, prepared),
        )
    spec = predictors.load(fitted.registered.uri).spec
    assert spec.val_weights == {"news": 1.0, "code": 0.0, "math": 0.0}
    assert spec.explored.highest["news"] == 0.9
    asked = search_problem.of_study(other, recorded.predictor)
    with pytest.raises(InputError, match=r"reference breaks the rule 'bounds: news at most 0.9'"):
        search_problem.changed(
            asked, recorded.predictor, other, read(Overrides, {"reference": "news=1"})
        )

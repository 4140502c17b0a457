"""What the closing summary says: each verdict, of a study whose runs are recorded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlflow
import pytest

from fitting import registry
from fitting.selection.forms import Options
from optimization.domain import predictor as predictors
from optimization.mixture.solve import BEST, Answer
from pipelines import entry, fit, optimize
from pipelines.command.table import read
from pipelines.prepare import prepare
from pipelines.proof import verdict
from pipelines.runs.fitted_runs import purpose_of
from pipelines.study import load as studies
from pipelines.study import search_problem
from pipelines.study.prepared import Prepared
from pipelines.study.search_problem import Overrides
from tests.support.recorded import Losses, Recorded, found, prove
from tests.support.stores import empty_store
from tests.support.studies import miniature_study, written
from training.record import keys
from training.record.errors import InputError


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
    with entry.stage(keys.VERIFY) as active:
        proof = prove(study, above, active)
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

"""The law of a schedule, its registered predictor and the search: a known truth found again,
brute force, honesty where there is nothing to gain, bad rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from fitting.artifact import laws
from fitting.artifact.laws import ScheduleLaw
from fitting.data.phase_observations import PhaseRuns
from fitting.registry import Registered
from fitting.selection import schedule
from fitting.selection.schedule import ScheduleFit
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from optimization.schedule import plan as search
from optimization.schedule import plots
from optimization.schedule import predictor as predictors
from optimization.schedule.plan import CONSTANT, GREEDY, TRAJECTORIES, ScheduleAnswer
from optimization.schedule.predictor import SchedulePredictor
from optimization.schedule.report import report
from pipelines import schedule as pipeline
from tests.support.schedules import DOMAINS, NOISE, table, truth
from tests.support.stores import empty_store
from training.record import keys
from training.record.errors import InputError

Array = np.ndarray


def unchanging(law: ScheduleLaw) -> ScheduleLaw:
    """One m in all phases, and one ρ: no schedule is better than a constant mixture."""
    kept = np.where(np.arange(3)[:, None] > 0, 0.45, np.zeros_like(law.kept))
    first: dict[str, Any] = {
        name: np.stack([getattr(law, name)[0]] * 3) for name in ("floor", "log_scale", "slope")
    }
    return replace(law, kept=kept, **first)


def fit(law: ScheduleLaw, noise: float = NOISE) -> ScheduleFit:
    count = law.slope.shape[-1]
    runs = PhaseRuns.from_table(table(law, noise), law.tokens)
    return schedule.fit(runs, np.full(count, 1 / count))


@pytest.fixture(scope="module")
def found() -> ScheduleFit:
    """The fit to runs of the truth."""
    return fit(truth())


def predictor(law: ScheduleLaw, replicates: tuple[ScheduleLaw, ...] = ()) -> SchedulePredictor:
    """The search's view of a law, without a registry."""
    count = law.slope.shape[-1]
    names, weights = DOMAINS[:count], np.full(count, 1 / count)
    return SchedulePredictor(
        "", names, names, weights, law.tokens, np.eye(count), law, list(replicates or [law]), None
    )


def plan(
    asked: SchedulePredictor, bounds: dict[str, tuple[float, float]] | None = None
) -> ScheduleAnswer:
    return search.solve(asked, allowed(asked, bounds), {}, trials=30, seed=0)


def allowed(
    asked: SchedulePredictor, bounds: dict[str, tuple[float, float]] | None = None
) -> Feasible:
    return feasible(Constraints(bounds or {}), asked.domains, asked.tokens[-1])


def end(law: ScheduleLaw, schedule: Array) -> float:
    """The mean loss at the end of one schedule, (K, M)."""
    return float(law.predict(schedule[None])[0, -1].mean())


# the fit -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_known_law_is_found_again_and_its_schedule_gains_what_is_predicted(
    found: ScheduleFit,
) -> None:
    law = truth()
    assert found.law.kept[0] == pytest.approx(0, abs=0)
    assert found.law.kept[1:] == pytest.approx(law.kept[1:], abs=0.1)
    assert np.abs(found.law.kept - law.kept)[1:].mean() < 0.03
    unseen = np.random.default_rng(9).dirichlet(np.ones(4), (200, 3))
    errors = (found.law.predict(unseen) - law.predict(unseen)).mean(axis=2)
    assert (np.sqrt((errors**2).mean(axis=0)) < 0.006).all()
    scores = found.scores
    assert (scores["rmse"][:3] < 0.25 * scores["mean_rmse"][:3]).all()
    assert scores["rmse"].iloc[-1] < 0.2 * scores["spread"].iloc[-1]

    answer, best = plan(predictor(found.law, found.replicates)), plan(predictor(law))
    gained = end(law, answer.strategies[CONSTANT].schedule) - end(law, answer.best.schedule)
    assert best.gain() > 0.01
    assert gained == pytest.approx(best.gain(), rel=0.15)
    assert answer.gain() == pytest.approx(gained, rel=0.3)
    assert answer.range()[0] > 0
    assert answer.distinguishable


# the search --------------------------------------------------------------------------------------


def test_dynamic_programming_is_brute_force_over_whole_schedules() -> None:
    law = truth(domains=2, seed=3)
    shares = np.linspace(0, 1, 41)
    grid = np.stack(np.meshgrid(shares, shares, shares, indexing="ij"), axis=-1).reshape(-1, 3)
    every = np.stack([grid, 1 - grid], axis=2)  # (schedules, K, M)
    ends = law.predict(every)[:, -1].mean(axis=1)
    found = plan(predictor(law))
    assert found.best.schedule[:, 0] == pytest.approx(grid[ends.argmin()], abs=0.0126)
    value, bound = found.best.objectives[-1], found.best.bound
    assert bound is not None
    assert value - 1e-6 < bound <= ends.min()
    assert value <= ends.min() < value + 1e-3

    constants = np.broadcast_to(np.stack([shares, 1 - shares], axis=1)[:, None], (41, 3, 2))
    losses = law.predict(constants).mean(axis=2)  # (mixtures, K)
    constant, trajectories = found.strategies[CONSTANT], found.strategies[TRAJECTORIES]
    assert constant.bound is not None
    assert constant.objectives[-1] - 1e-6 < constant.bound <= losses[:, -1].min()
    assert constant.schedule[0, 0] == pytest.approx(shares[losses[:, -1].argmin()], abs=0.0126)
    assert trajectories.schedule[:, 0] == pytest.approx(shares[losses.argmin(axis=0)], abs=0.0126)
    greedy = [law.phase(k).predict(constants[:, k]).mean(axis=1).argmin() for k in range(3)]
    assert found.strategies[GREEDY].schedule[:, 0] == pytest.approx(shares[greedy], abs=0.0126)
    assert found.gain() > 0.001
    assert all(found.gain() >= found.gain(name) - 1e-9 for name in found.strategies)


def test_what_comes_next_does_not_depend_on_what_was_trained() -> None:
    """From any state on the way, no other mixtures of the phases left are better."""
    law = truth(seed=1)
    best = plan(predictor(law)).best.schedule
    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.ones(4), (2000, 3))
    others[:, 0] = others[0, 0]  # another first phase than the best
    rest = np.concatenate([others[0, :1], best[1:]])
    assert end(law, rest) < law.predict(others)[:, -1].mean(axis=1).min()


def test_a_schedule_stays_within_the_rules() -> None:
    asked = predictor(truth())
    bounds = {"web": (0.4, 0.6), "code+papers": (0.0, 0.3)}
    rules, found = allowed(asked, bounds), plan(asked, bounds)
    for strategy in found.strategies.values():
        assert rules.violation(strategy.schedule).max() <= 1e-9
    assert found.best.objectives[-1] > plan(asked).best.objectives[-1]


def test_where_the_phases_are_alike_the_report_says_that_nothing_is_gained() -> None:
    law = unchanging(truth())
    exact = plan(predictor(law))
    assert exact.gain() == pytest.approx(0, abs=1e-7)
    found = fit(law, noise=0.01)
    answer = plan(predictor(found.law, found.replicates))
    assert answer.gain() > 0  # by the luck of the noise
    assert not answer.distinguishable
    doubt = "the schedule cannot be told from the best constant mixture: chosen on other draws"
    assert any(line.startswith(doubt) for line in report(answer))


# the registered predictor ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(
    found: ScheduleFit,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ScheduleFit, Registered]]:
    """The fit in a registry of its own, which no test changes."""
    with empty_store(tmp_path_factory.mktemp("schedule")):
        with mlflow.start_run():
            version = pipeline.register(found, "schedule-predictor", 57_000, keys.NATS)
        yield found, version


def rows(schedules: Array) -> pd.DataFrame:
    """The predictor's input, a row a schedule of (n, K, M)."""
    columns = [f"phase/{k}/mixture/{d}" for k in (1, 2, 3) for d in DOMAINS]
    return pd.DataFrame(schedules.reshape(len(schedules), -1), columns=columns)


def test_the_predictor_is_the_law_and_holds_the_truth(
    registered: tuple[ScheduleFit, Registered],
) -> None:
    found, version = registered
    assert version.alias == "champion"
    asked = predictors.load(version.uri)
    again = laws.from_json(laws.to_json(found.law))
    schedules = np.random.default_rng(4).dirichlet(np.ones(4), (50, 3))
    losses = found.law.predict(schedules)
    assert again.predict(schedules) == pytest.approx(losses, abs=0)
    answer = asked.loaded.predict(rows(schedules))
    ends = [*(f"val_loss/{d}" for d in DOMAINS), "objective", "objective_low", "objective_high"]
    assert list(answer) == [*ends, *(f"phase/{k}/objective" for k in (1, 2, 3))]
    assert answer[ends[:4]].to_numpy() == pytest.approx(losses[:, -1])
    each = answer[[f"phase/{k}/objective" for k in (1, 2, 3)]].to_numpy()
    assert each == pytest.approx(losses.mean(axis=2))
    assert answer["objective"].to_numpy() == pytest.approx(each[:, -1])
    seen = truth().predict(schedules)[:, -1].mean(axis=1)
    inside = (answer["objective_low"] <= seen) & (seen <= answer["objective_high"])
    assert inside.mean() >= 0.9
    width = answer["objective_high"] - answer["objective_low"]
    assert width.mean() < 2 * seen.std()
    assert asked.predict_one(schedules[0])["objective"] == pytest.approx(
        answer["objective"].iloc[0]
    )


def test_the_plan_of_a_loaded_predictor_is_drawn(
    registered: tuple[ScheduleFit, Registered],
) -> None:
    found = plan(predictors.load(registered[1].uri))
    text = "\n".join(report(found))
    assert "certified phase by phase" in text
    assert f"{found.best.schedule[0, 0]:.3f}" in text
    assert len(plots.schedules(found).axes) == len(found.strategies)
    gains: Any
    (gains,) = plots.gains(found).axes
    drawn = {bars.get_label(): bars.lines[0].get_ydata()[-1] for bars in gains.containers}
    assert drawn == pytest.approx({name: found.gain(name) for name in drawn})
    assert set(drawn) == set(found.strategies) - {CONSTANT}
    (kept,) = plots.retention(found).axes
    widths = [bar.get_width() for bars in kept.containers for bar in bars]
    assert widths == pytest.approx(found.predictor.law.kept[1:].ravel())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"phase/2/mixture/web": -0.1}, "row 7, column 'phase/2/mixture/web': -0.1 must not be"),
        ({"phase/1/mixture/code": np.nan}, "column 'phase/1/mixture/code': the value is missing"),
        ({"phase/3/mixture/web": 0.9}, "row 7, columns 'phase/3/mixture/web' … 'phase/3/mixture/b"),
        ({"phase/4/mixture/web": 1.0}, "column 'phase/4/mixture/web': unknown column"),
        ({"phase/2/mixture/wep": 0.0}, "column 'phase/2/mixture/wep': unknown column"),
    ],
)
def test_bad_rows_are_named(
    registered: tuple[ScheduleFit, Registered], change: dict[str, float], named: str
) -> None:
    row = rows(np.full((1, 3, 4), 0.25)).assign(**change).set_axis([7])
    with pytest.raises(MlflowException) as refused:
        predictors.load(registered[1].uri).loaded.predict(row)
    assert named in refused.value.message
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_model_that_does_not_exist_is_refused(
    registered: tuple[ScheduleFit, Registered],
) -> None:
    with pytest.raises(InputError, match="model 'models:/none/1' cannot be loaded"):
        predictors.load(registered[1].uri.replace("schedule-predictor", "none"))

"""The critical proportion: found again from a known truth and from published runs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from optimization.continual import solve
from optimization.continual.report import CriticalAnswer, report
from optimization.domain import objective
from pipelines import critical, entry, imports
from pipelines.command import texts
from pipelines.runs.continual_law import Question
from tests.support.commands import call
from tests.support.tables import MIXINGLAWS, published
from training.record import keys
from training.record.errors import InputError

Truth = Callable[[np.ndarray], Mapping[str, float]]
TOKENS = 1_000_000


def history_file(
    path: Path, mixtures: np.ndarray, domains: list[str], base: Mapping[str, float], truth: Truth
) -> Path:
    """A tidy table of runs that continue a base: its losses at step 0, the truth's at the end."""
    rows = []
    for i, mixture in enumerate(mixtures):
        for step, losses in ((0, base), (10, truth(mixture))):
            rows.append(
                {
                    "run": f"run{i}",
                    "n_params": 1000,
                    "tokens": step * TOKENS // 10,
                    "step": step,
                    **keys.with_prefix(keys.MIXTURE, dict(zip(domains, mixture, strict=True))),
                    **keys.with_prefix(keys.VAL_LOSS, losses),
                }
            )
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def solved(path: Path, question: Question) -> CriticalAnswer:
    """The answer from an import of the file, as the entry points find it."""
    with entry.stage(keys.IMPORT):
        call(imports, source=str(path), format="tidy", experiment="ct")
    with entry.stage(keys.CRITICAL) as active:
        return critical.of_experiment(entry.experiment_ids("ct", active), "", question)


def asked(original: str, tolerances: tuple[float, ...] = (), **weights: float) -> Question:
    return Question(original.split(","), [], weights, None, tolerances, "continual")


def two(mixture: np.ndarray) -> dict[str, float]:
    """Old data and new: the loss of the old falls to 2.4 + 0.6 e^-1.5 as it makes up all."""
    old = mixture[0]
    return {"old": 2.4 + 0.6 * np.exp(-1.5 * old), "new": 1.2 + 0.5 * np.exp(1.1 * old)}


def line(shares: list[float]) -> np.ndarray:
    return np.stack([shares, 1 - np.array(shares)], axis=1)


@pytest.mark.slow
def test_the_critical_proportion_of_a_known_law_is_found_again(store: str, tmp_path: Path) -> None:
    assert store
    rng = np.random.default_rng(0)

    def noisy(mixture: np.ndarray) -> dict[str, float]:
        return {d: x + rng.normal(0, 0.001) for d, x in two(mixture).items()}

    shares = [0.1, 0.2, 0.35, 0.5, 0.7, 0.9]
    base = two(np.array([0.3, 0.7])) | {"new": 3.0}
    path = history_file(tmp_path / "runs.csv", line(shares), ["old", "new"], base, noisy)
    given = solved(path, asked("old", (0.02,)))
    found = given.forgetting
    assert found.before == pytest.approx((base["old"], 3.0))
    assert found.one_dimensional
    kept, tolerated = found.answers
    at_tolerance = -np.log(np.exp(-0.45) + 0.02 / 0.6) / 1.5  # where the truth is 0.02 higher
    for answer, truth in ((kept, 0.3), (tolerated, at_tolerance)):
        assert answer.share == pytest.approx(truth, abs=0.01)
        assert answer.share_low is not None
        assert answer.share_high is not None
        assert answer.share_low < truth < answer.share_high
        assert answer.new is not None
        losses = two(np.array([answer.share, 1 - truth]))
        assert answer.new[0] == pytest.approx(losses["new"], abs=0.005)
        assert answer.bound == pytest.approx(answer.new[0], abs=1e-5)
    assert kept.original is not None
    assert kept.original[0] == pytest.approx(base["old"], abs=1e-6)
    assert (given.measured["original"] - given.measured["predicted_original"]).abs().max() < 0.01
    assert (np.diff(found.curve.sort_values("share")["original"]) < 0).all()
    spec: Any = found.predictor.spec
    for before, words in (
        (
            3.2,
            "kept down to the least proportion that was trained, 0.1: the critical one lies below",
        ),
        (2.4, "no mixture with 0.1 to 0.9 of original data, as trained, keeps the loss on it"),
    ):
        moved = replace(spec.continual, base={"old": before, "new": 3.0})
        told = replace(spec, continual=moved)
        other = solve.solve(replace(found.predictor, spec=told), [])
        assert words in "\n".join(report(CriticalAnswer(other, given.measured)))
        assert (other.answers[0].share is None) == (before < 3)
    model = mlflow.pyfunc.load_model("models:/continual@champion")
    asked_row = pd.DataFrame([{"mixture/old": kept.share, "mixture/new": 1 - (kept.share or 0)}])
    assert model.predict(asked_row)["val_loss/old"][0] == pytest.approx(base["old"], abs=1e-6)


@pytest.mark.slow
def test_the_frontier_of_free_domains_is_that_of_a_grid(store: str, tmp_path: Path) -> None:
    assert store
    domains = ["code", "web", "math"]
    slopes = np.array([[-2.0, -0.3, 0.2], [-0.2, -1.8, 0.3], [0.3, -0.4, -1.6]])

    def truth(mixture: np.ndarray) -> dict[str, float]:
        losses = 1.5 + np.exp(slopes @ mixture**0.5)
        return dict(zip(domains, losses, strict=True))

    base = truth(np.array([0.35, 0.35, 0.3])) | {"math": 3.0}
    mixtures = np.random.default_rng(1).dirichlet(np.ones(3), 14)
    path = history_file(tmp_path / "runs.csv", mixtures, domains, base, truth)
    given = solved(path, asked("code,web", (0.05, 0.1), code=2, web=1))
    found = given.forgetting
    assert not found.one_dimensional
    steps = np.linspace(0, 1, 201)
    grid = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1])
    grid = grid[found.allowed.inside(grid)]
    original, new = (
        objective.weighted(found.predictor, w)(grid) for w in (found.original, found.new)
    )
    for answer in found.answers:
        level = found.before[0] + answer.tolerance
        assert answer.mixture is not None
        assert answer.original is not None
        assert answer.new is not None
        assert answer.bound is not None
        assert answer.original[0] <= level + 1e-8
        assert answer.bound - 1e-6 <= answer.new[0] <= new[original <= level].min() + 1e-9
        assert answer.new[0] - answer.bound < 1e-3
    assert found.curve["new"].iloc[-1] <= new.min() + 1e-9  # the frontier ends at the most learnt
    assert (np.diff(found.curve["new"]) <= 1e-7).all()
    assert (np.diff(found.curve["original"]) >= -1e-7).all()


@pytest.mark.slow
def test_sides_that_kept_rounded_inner_proportions_are_one_line(store: str, tmp_path: Path) -> None:
    assert store
    shares = np.array([0.1, 0.25, 0.4, 0.55, 0.7, 0.85])
    mixtures = np.stack([shares / 3, 2 * shares / 3, 1 - shares], axis=1).round(3)

    def truth(mixture: np.ndarray) -> dict[str, float]:
        old = float(mixture[:2].sum())
        return {"a": 2 + np.exp(-1.5 * old), "b": 2.2 + np.exp(-1.2 * old), "c": 1 + 0.2 * old}

    base = truth(np.array([0.1, 0.2, 0.7]))
    path = history_file(tmp_path / "runs.csv", mixtures, ["a", "b", "c"], base, truth)
    found = solved(path, asked("a,b")).forgetting
    assert found.one_dimensional
    (answer,) = found.answers
    assert answer.share == pytest.approx(0.3, abs=0.01)
    assert answer.share is not None
    assert answer.share_low is not None
    assert answer.share_high is not None
    assert answer.share_low <= answer.share <= answer.share_high


@pytest.mark.slow
@published
def test_the_published_runs_have_the_papers_critical_proportion(store: str) -> None:
    assert store
    with entry.stage(keys.IMPORT):
        call(
            imports,
            source=str(MIXINGLAWS / "ct"),
            format="mixinglaws",
            domains="pile,python",
            base="pythia_70m_step20000",
            check="70M-9",
            experiment="ct",
        )
    weights = texts.numbers("weights", str(MIXINGLAWS / "valid_weight.json"))
    wanted = Question(["pile"], [], weights, None, [], "continual")
    with entry.stage(keys.CRITICAL) as active:
        given = critical.of_experiment(entry.experiment_ids("ct", active), "", wanted)
    answer = given.forgetting.answers[0]
    assert answer.share == pytest.approx(0.286, abs=0.005)
    assert answer.share_low is not None
    assert answer.share_high is not None
    assert answer.share_low < 0.286 < answer.share_high
    (check,) = given.checks.to_dict("records")
    assert check["share"] == pytest.approx(0.28515625)
    assert check["predicted_original"] == pytest.approx(check["original"], abs=0.003)
    assert check["predicted_new"] == pytest.approx(check["new"], abs=0.003)


def test_a_predictor_that_tells_no_base_cannot_be_asked() -> None:
    other = SimpleNamespace(spec=SimpleNamespace(continual=None), uri="models:/other/1")
    with pytest.raises(InputError, match="models:/other/1' has no losses of a base model"):
        solve.solve(other, [])  # type: ignore[arg-type]

"""Designs: they fill the allowed set, and what is proposed waits in the sweep's ledger."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from optimization.design import space_filling
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import DECIMALS, feasible
from pipelines import design as designs
from pipelines import entry
from pipelines.prepare import prepare
from pipelines.runs.proxy_runs import ledger, planned_runs, proxy_runs
from pipelines.study import load as studies
from tests.support.commands import call
from tests.support.studies import WriteStudy
from tests.support.tiny_runs import RUNS
from training.record import keys
from training.record.errors import InputError
from training.run import Run
from training.workers.ledger import Ledger

Array = np.ndarray
DOMAINS = ("a", "b", "c", "d")
BOUNDS = dict.fromkeys(DOMAINS, (0.05, 0.7))
GIVEN = np.array([[0.6, 0.2, 0.1, 0.1], [0.25] * 4])


def test_the_spread_design_covers_the_bounded_simplex() -> None:
    allowed = feasible(Constraints(BOUNDS), DOMAINS, 1)
    mixtures = space_filling.designed("spread", 14, GIVEN, allowed, seed=0)
    assert np.array_equal(mixtures, space_filling.designed("spread", 14, GIVEN, allowed, seed=0))

    def worst_gap(points: Array) -> float:
        everywhere = allowed.from_cube(np.random.default_rng(1).random((2000, 3)))
        return float(np.abs(everywhere[:, None] - points).sum(axis=2).min(axis=1).mean())

    rng = np.random.default_rng(2)
    by_chance = [
        worst_gap(np.vstack([GIVEN, allowed.from_cube(rng.random((12, 3)))])) for _ in range(20)
    ]
    assert worst_gap(mixtures) < np.mean(by_chance)


@pytest.mark.parametrize("way", space_filling.WAYS)
@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(BOUNDS),
        Constraints({"a+b": (0.3, 0.6), "c": (0.0, 0.5)}),
        Constraints(bundles={"ab": {"a": 0.25, "b": 0.75}}),
    ],
)
def test_every_design_satisfies_the_constraints(way: str, constraints: Constraints) -> None:
    allowed = feasible(constraints, DOMAINS, 1)
    given = GIVEN[allowed.inside(GIVEN)]
    reference = np.array([0.15, 0.45, 0.2, 0.2])
    mixtures = space_filling.designed(way, 12, given, allowed, 0, reference, concentration=2.0)
    assert mixtures.shape == (12, 4)
    assert np.array_equal(mixtures[: len(given)], given)
    assert allowed.violation(mixtures).max() <= 1e-9
    assert len(np.unique(mixtures.round(6), axis=0)) == 12
    halvings = mixtures[len(given) :, :-1] * 16
    if way == "halved" and not constraints.bundles:
        top = np.floor(allowed.upper[:-1] * 16 + 1e-9)
        ratio = np.log2(top / np.where(halvings > 0, halvings, top))
        assert np.array_equal(ratio, ratio.round())  # each is its highest, halved


def test_the_grid_of_halved_proportions_is_the_published_codes() -> None:
    """Its find_opt.py enumerates 854 candidates for these highest proportions."""
    domains = tuple(f"d{i}" for i in range(7))
    highest = (1, 1, 0.5857, 0.2588, 0.2254, 0.1779, 0.1727)
    bounds = {d: (0.0, h) for d, h in zip(domains, highest, strict=True)}
    grid = np.array(list(space_filling.halved_grid(feasible(Constraints(bounds), domains, 1))))
    assert len(np.unique(grid, axis=0)) == len(grid) == 854


def test_dirichlet_draws_gather_around_the_reference() -> None:
    allowed = feasible(Constraints(), DOMAINS, 1)
    reference = np.array([0.5, 0.3, 0.15, 0.05])
    wide, narrow = (space_filling.dirichlet(allowed, 200, reference, c, 0) for c in (2.0, 50.0))
    assert narrow.mean(axis=0) == pytest.approx(reference, abs=0.02)
    assert narrow.std(axis=0).max() < wide.std(axis=0).min()
    corner = feasible(Constraints({"d": (0.9, 1.0)}), DOMAINS, 1)
    with pytest.raises(InputError, match="draws around the reference 0 satisfy the constraints"):
        space_filling.dirichlet(corner, 5, reference, 50.0, 0)


def test_a_design_that_cannot_be_is_refused() -> None:
    fixed = feasible(Constraints(dict.fromkeys(DOMAINS, (0.25, 0.25))), DOMAINS, 1)
    with pytest.raises(InputError, match="bounds and bundles leave a single mixture"):
        space_filling.designed("spread", 4, GIVEN[1:], fixed, 0)
    few = feasible(Constraints({"a": (0.9, 1.0)}), DOMAINS, 1)
    with pytest.raises(InputError, match="the grid of halved proportions has "):
        space_filling.designed("halved", 20, GIVEN[:0], few, 0)


@pytest.mark.slow
def test_proposals_wait_in_the_ledger_for_the_next_sweep(
    store: str, miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    """Without a predictor: what is proposed fills what is planned, under the study's bundle."""
    assert store
    miniature["bundles"] = {"text": {"news": 0.75, "math": 0.25}}
    miniature["default_mixture"] = {"news": 0.6, "code": 0.2, "math": 0.2}
    path = write_study(miniature)
    plan = studies.load(path)
    for _ in range(2):
        with entry.stage(keys.DESIGN):
            call(designs, study=path, count="2", enqueue="true")
    with entry.stage(keys.SWEEP) as active:
        prepared = prepare(plan)
        planned, waiting = proxy_runs(prepared), planned_runs(prepared, active)
        ledger(prepared, active).enqueue(waiting)  # those that wait are there once
        assert planned_runs(prepared, active) == waiting
    assert waiting[: len(planned)] == planned
    new = waiting[len(planned) :]
    assert len(new) == 2 * 2 * 2  # two designs of two mixtures at two sizes
    assert len({run.name for run in waiting}) == len(waiting)
    mixtures = np.unique([[*run.mixture.values()] for run in waiting], axis=0)
    assert len(mixtures) == 4 + 4
    assert mixtures[:, 0] == pytest.approx(3 * mixtures[:, 2], abs=1e-9)  # the bundle's
    last = mlflow.search_runs(filter_string="tags.stage = 'design'").iloc[0]
    assert last["metrics.flops"] == pytest.approx(last["metrics.sweep_flops"] / 2)


def test_a_study_tells_a_bundle_that_is_broken(
    miniature: dict[str, Any], write_study: WriteStudy
) -> None:
    miniature["bundles"] = {"text": {"news": 0.75, "math": 0.25}}
    miniature["sweep"]["mixtures"] = [
        {"news": 0.75, "math": 0.25},
        {"news": 0.3, "math": 0.1, "code": 0.6},
        {"news": 0.3, "math": 0.3, "code": 0.4},
    ]
    with pytest.raises(
        InputError, match=r"sweep.mixtures\[2\] breaks the rule 'bundles: 0.75 news"
    ):
        studies.load(write_study(miniature))


def test_a_design_has_no_rounding_errors_of_its_constraints() -> None:
    """A run is known by its mixture: machines that share a sweep design it to the last bit."""
    allowed = feasible(Constraints(dict.fromkeys(DOMAINS, (0.03, 0.7))), DOMAINS, 1)
    for way in ("spread", "sobol", "dirichlet"):
        mixtures = space_filling.designed(way, 12, GIVEN, allowed, 0, GIVEN[0])
        assert np.array_equal(mixtures, mixtures.round(DECIMALS))


def test_an_interrupted_proposal_still_waits(tmp_path: Path) -> None:
    book = Ledger(f"sqlite:///{tmp_path}/ledger.db", "sweep")
    book.enqueue(RUNS[:3])

    def train(claimed: Run) -> float:
        if claimed == RUNS[1]:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        book.work(train, lambda _: None)
    assert book.open_runs() == RUNS[1:3]
    book.enqueue(book.open_runs())
    book.work(lambda _: 1.0, lambda _: None)
    assert book.open_runs() == []


def test_a_withdrawn_run_is_trained_by_nobody_until_it_is_planned_again(tmp_path: Path) -> None:
    book, trained = Ledger(f"sqlite:///{tmp_path}/ledger.db", "sweep"), []

    def train(claimed: Run) -> float:
        trained.append(claimed)
        if len(trained) == 1:
            raise KeyboardInterrupt
        return 1.0

    book.enqueue(RUNS[:3])
    with pytest.raises(KeyboardInterrupt):
        book.work(train, lambda _: None)
    book.withdraw(RUNS[:2])  # one that was begun and one that waits
    book.work(train, lambda _: None)
    assert trained == [RUNS[0], RUNS[2]]
    book.enqueue(RUNS[:2])
    assert book.open_runs() == RUNS[:2]
    book.work(train, lambda _: None)
    assert trained[2:] == RUNS[:2]

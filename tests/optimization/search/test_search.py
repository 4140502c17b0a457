"""The search: known optima, certified bounds, constraints that hold."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from fitting.artifact.laws import MixingLaw, StackedMixing
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import feasible
from optimization.domain.objective import Objective, divergence
from optimization.mixture import sensitivity
from optimization.search import search
from optimization.search.certificate import prove
from optimization.search.descent import descend
from tests.benchmarks import verdicts
from tests.support.objectives import DECAY, DOMAINS, WEIGHTS, differences_of, own
from training.record.errors import InputError

Array = np.ndarray


# known optima ------------------------------------------------------------------------------------


def loss(law: MixingLaw | None = None, weights: Array = WEIGHTS) -> Objective:
    return Objective(law or own(), weights[:, None], np.zeros(1))


def solve(objective: Objective, constraints: Constraints, fitted: Array | None = None) -> Array:
    """The best mixture, allowed to 1e-9 and proven to 1e-6."""
    allowed = feasible(constraints, DOMAINS, 1e9, fitted)
    known = {"uniform": np.full(len(DOMAINS), 1 / len(DOMAINS))}
    found = search.search(objective, allowed, known, trials=40, seed=0)
    assert allowed.violation(found.mixture[None])[0] <= 1e-9
    assert found.bound is not None
    assert -1e-7 < found.value - found.bound < 1e-4
    assert found.value <= found.trials["objective"].min() + 1e-12
    return found.mixture


def filled(low: Array, high: Array, total: float = 1.0, weights: Array = WEIGHTS) -> Array:
    """The optimum within bounds: w_i exp(−DECAY r_i) is one level wherever no bound holds."""

    def at(level: float) -> Array:
        return np.clip((np.log(weights) + level) / DECAY, low, high)

    return at(brentq(lambda level: at(level).sum() - total, -50, 50))


NO, ALL = np.zeros(4), np.ones(4)


@pytest.mark.parametrize(
    ("bounds", "low", "high"),
    [
        ({}, NO, ALL),  # on a face: the last domain gets nothing
        ({"a": (0.0, 0.2)}, NO, np.array([0.2, 1, 1, 1])),
        ({"d": (0.3, 1.0), "b": (0.1, 0.1)}, np.array([0, 0.1, 0, 0.3]), np.array([1, 0.1, 1, 1])),
        ({"a": (0.9, 1.0), "d": (0.1, 1.0)}, np.array([0.9, 0, 0, 0.1]), ALL),  # one corner
    ],
)
def test_optima_within_bounds_are_found(
    bounds: dict[str, tuple[float, float]], low: Array, high: Array
) -> None:
    assert solve(loss(), Constraints(bounds)) == pytest.approx(filled(low, high), abs=2e-6)


def test_an_optimum_in_a_corner_is_found() -> None:
    slope = np.array([0.3, -0.5, 0.1, -0.6])
    law = MixingLaw(1.0, np.zeros(1), np.zeros((1, 1)), slope[None, None])
    best = solve(loss(law, np.ones(1)), Constraints())
    assert best == pytest.approx([0, 0, 0, 1], abs=1e-9)


@pytest.mark.parametrize("limits", [(0.0, 0.3), (0.3, 0.3), (0.95, 1.0)])
def test_the_optimum_under_a_groups_limits_is_found(limits: tuple[float, float]) -> None:
    best = solve(loss(), Constraints({"a+b": limits}))
    together = min(max(filled(NO, ALL)[:2].sum(), limits[0]), limits[1])
    inside = filled(NO[:2], ALL[:2], together, WEIGHTS[:2])
    outside = filled(NO[2:], ALL[2:], 1 - together, WEIGHTS[2:])
    assert best == pytest.approx([*inside, *outside], abs=2e-6)


def test_available_tokens_bound_the_proportions() -> None:
    constraints = Constraints(available={"a": 0.05e9, "c": 10e9}, epochs=4)
    high = np.array([0.2, 1, 1, 1])  # 4 epochs of 0.05e9 tokens are a fifth of 1e9
    assert solve(loss(), constraints) == pytest.approx(filled(NO, high), abs=2e-6)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_optimum_of_a_bundle_keeps_its_inner_proportions(power: float) -> None:
    inner = {"a": 0.25, "b": 0.75}
    constraints = Constraints({"d": (0.0, 0.0)}, bundles={"ab": inner})
    best = solve(loss(own(power)), constraints)
    assert best[1] == pytest.approx(3 * best[0], abs=1e-12)
    line = np.linspace(0, 1, 200_001)
    mixtures = np.stack([0.25 * line, 0.75 * line, 1 - line, 0 * line], axis=1)
    least = mixtures[loss(own(power))(mixtures).argmin()]
    assert best == pytest.approx(least, abs=1e-4)


@pytest.mark.slow
def test_a_descent_leaves_the_faces_on_which_a_trust_region_is_centred() -> None:
    """A sum of laws is searched in √r; for a law of φ = r no loss has a slope there at r = 0."""
    rng = np.random.default_rng(0)
    domains, losses = [f"d{i}" for i in range(16)], 8
    for _ in range(12):
        law = MixingLaw(
            1.0,
            rng.normal(2, 0.1, losses),
            rng.normal(-1, 0.3, (losses, 1)),
            rng.normal(-0.3, 0.7, (losses, 1, 16)),
        )
        fitted = rng.dirichlet(np.full(16, 0.15), 30)
        fitted[fitted < 0.02] = 0
        fitted /= fitted.sum(axis=1, keepdims=True)
        allowed = feasible(Constraints(trust=0.3), domains, 1e9, fitted)
        summed = Objective(
            StackedMixing((law, law), np.full(2, 0.5)),
            np.full((losses, 1), 1 / losses),
            np.zeros(1),
        )
        centre = allowed.balls[0].centre
        end = descend(summed, allowed, centre)
        assert allowed.inside(end[None])[0]
        others = 0.98 * centre + 0.02 * rng.dirichlet(np.ones(16), 4)
        inner = [descend(summed, allowed, start) for start in others]
        assert float(summed(end[None])[0]) <= summed(np.array(inner)).min() + 1e-6


def test_a_pull_moves_the_optimum_by_its_strength() -> None:
    reference = np.array([0.1, 0.2, 0.3, 0.4])
    pulled = replace(loss(), reference=reference, pull=0.2)
    best = solve(pulled, Constraints())
    # where no bound holds, loss and pull have slopes of one sum in every domain
    slopes = -DECAY * WEIGHTS * np.exp(-DECAY * best) + 0.2 * np.log(best / reference)
    assert np.ptp(slopes) < 1e-4
    path = sensitivity.pull_path(
        pulled.pulled(0.0), feasible(Constraints(), DOMAINS, 1e9), best, 0.2
    )
    given = path[path["strength"] == 0.2].iloc[0]
    assert given[[f"mixture/{d}" for d in DOMAINS]].to_numpy(float) == pytest.approx(best, abs=1e-4)
    assert given["divergence"] == pytest.approx(divergence(best[None], reference)[0], abs=1e-4)
    # the strength is the gain that a nat of divergence must bring: the slope of the path
    slope = np.diff(path["gain"]) / np.diff(path["divergence"])
    strengths = path["strength"].to_numpy()
    moved = np.diff(path["divergence"]) < -1e-4
    assert (slope[moved] >= strengths[:-1][moved] - 1e-3).all()
    assert (slope[moved] <= strengths[1:][moved] + 1e-3).all()


def test_the_worst_domain_is_levelled() -> None:
    reference = np.array([0.4, 0.3, 0.2, 0.1])
    at_reference = own().predict(reference[None])[0]
    worst = Objective(own(), np.eye(4)[:, :2], at_reference[:2])  # of a and b alone
    best = solve(worst, Constraints({"c": (0.2, 1.0), "d": (0.2, 1.0)}))
    excess = own().predict(best[None])[0] - at_reference
    assert best[2:] == pytest.approx([0.2, 0.2], abs=1e-4)
    assert excess[0] == pytest.approx(excess[1], abs=1e-4)


def test_a_trust_region_is_searched_around_every_fitted_mixture() -> None:
    fitted = np.array([[0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    best = solve(loss(), Constraints(trust=0.05), fitted)
    # 0.05 of the tokens go from the least useful domain to the most useful one of the third
    assert best == pytest.approx([0.3, 0.25, 0.25, 0.2], abs=1e-4)


def test_optima_of_a_root_law_are_proven_on_faces() -> None:
    """With φ = √r a domain that harms the others is left out altogether."""
    slope = -DECAY * np.eye(4)
    slope[:, 3] = 0.5
    law = MixingLaw(0.5, np.zeros(4), np.zeros((4, 1)), slope[:, None, :])
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    best = solve(loss(law, weights), Constraints())
    assert best[3] == pytest.approx(0, abs=1e-9)
    assert (best[:3] > 0.05).all()


def test_several_objectives_have_a_front() -> None:
    allowed = feasible(Constraints({"c": (0.0, 0.0), "d": (0.0, 0.0)}), DOMAINS, 1e9)
    unit = np.eye(4)
    found = search.front(
        {"a": loss(weights=unit[0]), "b": loss(weights=unit[1])},
        allowed,
        {},
        trials=60,
        seed=0,
    )
    front = found.trials[found.trials["on_front"]]
    assert len(front) > 15
    # every mixture of a and b is on the true front: exp(−DECAY r) for one, exp(−DECAY (1 − r))
    assert (front["a"] * front["b"]).to_numpy() == pytest.approx(np.exp(-DECAY), rel=1e-6)
    assert found.mixture[:2] == pytest.approx([0.5, 0.5], abs=0.1)


# constraints that hold ---------------------------------------------------------------------------


def drawn_problem(rng: np.random.Generator) -> tuple[tuple[str, ...], Constraints, Array]:
    count = int(rng.integers(2, 9))
    domains = tuple(f"d{i}" for i in range(count))
    bounds: dict[str, tuple[float, float]] = {}
    for d in rng.choice(domains, rng.integers(0, count), replace=False):
        low, high = np.sort(rng.beta(0.7, 1.5, 2)).round(3)
        bounds[str(d)] = (float(low), float(low if rng.random() < 0.2 else high))
    for _ in range(rng.integers(0, 3)):
        members = rng.choice(domains, rng.integers(2, count + 1), replace=False)
        low, high = np.sort(rng.random(2)).round(2)
        bounds["+".join(members)] = (float(low), float(low if rng.random() < 0.3 else high))
    bundles = {"x": {"d0": 0.3, "d1": 0.7}} if count > 3 and rng.random() < 0.3 else {}
    trust = float(rng.uniform(0.05, 0.4)) if rng.random() < 0.4 else None
    available = {"d1": rng.uniform(0, 1e9)} if rng.random() < 0.3 else {}
    fitted = rng.dirichlet(np.ones(count), 12)
    return domains, Constraints(bounds, available, 2.0, bundles, trust), fitted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_the_answer_satisfies_whatever_is_asked_or_the_rules_are_named(seed: int) -> None:
    rng = np.random.default_rng(seed)
    domains, constraints, fitted = drawn_problem(rng)
    count = len(domains)
    slope = rng.normal(0, 0.3, (count, 1, count)) - 2 * np.eye(count)[:, None]
    power = float(rng.choice([1.0, 0.5, 0.35]))
    law = MixingLaw(power, np.ones(count), rng.normal(0, 0.2, (count, 1)), slope)
    objective = loss(law, np.full(count, 1 / count))
    everywhere = rng.dirichlet(np.full(count, 0.6), 4000)
    allowed, refused = None, ""
    try:
        allowed = feasible(constraints, domains, 1e9, fitted)
    except InputError as error:
        refused = str(error)
    if allowed is None:
        assert "no mixture" in refused
        fits = _satisfies(everywhere, constraints, domains, 1e9)
        assert not fits.any() or "trust_region" in refused
        return
    points = allowed.from_cube(rng.random((500, allowed.free)))
    points = np.vstack([points, everywhere[allowed.inside(everywhere)]])
    assert allowed.violation(points).max() <= 1e-9
    assert np.abs(allowed.from_cube(allowed.to_cube(points)) - points).max() < 1e-8
    assert _satisfies(points, constraints, domains, 1e9).all()
    values = objective(points)
    best, bound = prove(objective, allowed, descend(objective, allowed, points[values.argmin()]))
    assert allowed.violation(best[None])[0] <= 1e-9
    assert objective(best[None])[0] <= values.min()
    assert bound is not None
    assert bound <= objective(best[None])[0] + 1e-7
    ranges = sensitivity.near_optimal(differences_of(objective, best), allowed)
    assert (ranges["lowest"] <= best + 1e-9).all()
    assert (ranges["highest"] >= best - 1e-9).all()


@pytest.mark.slow
def test_the_set_the_gain_and_the_verdict_hold_on_made_up_studies() -> None:
    """Fitted and searched as `fit` and `optimize` do, against the truth that made them."""
    found = pd.DataFrame([verdicts.judged(seed) for seed in range(1000, 1008)])
    assert found["best_held"].sum() >= 7
    assert found["gain_held"].sum() >= 7
    assert found["sure"].sum() >= 4
    assert found.loc[found["sure"], "sure_and_true"].all()
    assert found["free"].mean() < 0.6  # not held by telling nothing


def _satisfies(
    mixtures: Array, rules: Constraints, domains: tuple[str, ...], tokens: float
) -> Array:
    """Read off the constraints as they were written, (n,) bool; the trust region aside."""
    ok = np.ones(len(mixtures), bool)
    for name, (low, high) in rules.bounds.items():
        total = mixtures[:, [domains.index(d) for d in name.split("+")]].sum(axis=1)
        ok &= (total >= low - 1e-9) & (total <= high + 1e-9)
    for name, there in rules.available.items():
        ok &= mixtures[:, domains.index(name)] * tokens <= rules.epochs * there + 1
    for shares in rules.bundles.values():
        own = mixtures[:, [domains.index(d) for d in shares]]
        ok &= np.abs(own - own.sum(axis=1, keepdims=True) * [*shares.values()]).max(axis=1) < 1e-9
    return ok

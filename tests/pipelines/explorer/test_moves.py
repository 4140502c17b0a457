"""A move of a slider: sums, bounds, locks and rules hold, and the others change the least."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from optimization.domain.constraints import Constraints
from pipelines.explorer import moves
from pipelines.explorer.moves import Rules
from training.record.errors import InputError

Array = np.ndarray
STEP = 1e-4
DOMAINS = ("a", "b", "c", "d", "e")


def rules_of(constraints: Constraints, domains: tuple[str, ...] = DOMAINS) -> Rules:
    return Rules.of(constraints, domains, tokens=1e6)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rules, Array, list[str], int, float]:
    """Rules, an allowed mixture, locked variables, the index that moves, and where to."""
    point = np.array(draw(st.lists(st.integers(0, 100), min_size=5, max_size=5))) + 1.0
    inside = moves.rounded(rules_of(Constraints()), point / point.sum())
    room = st.floats(0, 0.5)
    bounds = {
        d: (max(0.0, x - draw(room)), min(1.0, x + draw(room)))
        for d, x in zip(DOMAINS, inside, strict=True)
        if draw(st.booleans())
    }
    if draw(st.booleans()):
        both = float(inside[0] + inside[1])
        bounds["a+b"] = (max(0.0, both - draw(room)), min(1.0, both + draw(room)))
    bundles = {"twins": {"d": 0.25, "e": 0.75}} if draw(st.booleans()) else {}
    if bundles:
        bounds = {name: limits for name, limits in bounds.items() if name not in ("d", "e")}
    rules = rules_of(Constraints(bounds=bounds, bundles=bundles))
    start = rules.placed(inside)
    index = draw(st.integers(0, len(rules.names) - 1))
    others = [name for i, name in enumerate(rules.names) if i != index]
    locked = draw(st.lists(st.sampled_from(others), max_size=3, unique=True))
    return rules, start, locked, index, draw(st.floats(-0.2, 1.2))


@given(problems())
@settings(max_examples=150)
def test_a_move_keeps_the_rules_and_the_locks(
    problem: tuple[Rules, Array, list[str], int, float],
) -> None:
    rules, start, locked, index, value = problem
    held = rules.fixed(start, locked)
    assume(not rules.broken(start))  # bounds narrower than a step
    low, high = moves.reach(held, index)
    after = moves.moved(held, start, index, value)
    assert sum(round(x / STEP) for x in after) == 10_000
    assert np.abs(after / STEP - np.round(after / STEP)).max() < 1e-6
    assert held.broken(after) == ""
    for name in locked:
        at = rules.names.index(name)
        assert after[at] == start[at]
    assert after[index] == pytest.approx(np.clip(value, low, high), abs=STEP)
    mixture = rules.mixture(after)
    assert mixture.sum() == pytest.approx(1, abs=1e-11)
    assert mixture.min() >= 0


@given(problems())
@settings(max_examples=80)
def test_a_move_is_the_smallest(problem: tuple[Rules, Array, list[str], int, float]) -> None:
    """No mixture that a general solver finds is nearer to the one before."""
    rules, start, locked, index, value = problem
    held = rules.fixed(start, locked)
    assume(not rules.broken(start))
    after = moves.moved(held, start, index, value)
    at = np.arange(len(start)) == index
    fixed = replace(
        held, lower=np.where(at, after, held.lower), upper=np.where(at, after, held.upper)
    )

    def apart(v: Array) -> float:
        return float(((rules.spread @ (v - start)) ** 2).sum())

    other = minimize(
        apart, after, method="SLSQP", bounds=list(zip(fixed.lower, fixed.upper, strict=True)),
        constraints=[
            {"type": "eq", "fun": lambda v: v.sum() - 1},
            {"type": "ineq", "fun": lambda v: fixed.limits - fixed.rows @ v},
        ],
        options={"ftol": 1e-14, "maxiter": 300},
    )  # fmt: skip
    shift = np.linalg.norm(rules.spread @ (other.x - after))
    assert np.sqrt(apart(after)) <= np.sqrt(apart(other.x)) + STEP * len(start)
    assert shift < 2 * STEP * len(start)


@given(problems())
@settings(max_examples=80)
def test_the_two_solvers_agree(problem: tuple[Rules, Array, list[str], int, float]) -> None:
    """With a rule on several variables, though it forbids nothing, another solver is used."""
    rules, start, locked, index, value = problem
    count = len(start)
    held = replace(
        rules.fixed(start, locked), rows=rules.rows[:0], limits=rules.limits[:0], row_names=()
    )
    assume(not rules.broken(start))
    low, high = moves.reach(held, index)
    at, value = np.arange(count) == index, float(np.clip(round(value, 4), low, high))
    fixed = replace(
        held, lower=np.where(at, value, held.lower), upper=np.where(at, value, held.upper)
    )
    ruled = replace(
        fixed, rows=np.ones((1, count)), limits=np.array([2.0]), row_names=("at most 2",)
    )
    one, other = moves.nearest(fixed, start), moves.nearest(ruled, start)
    assert one.sum() == pytest.approx(1, abs=1e-9)
    assert other == pytest.approx(one, abs=1.01 * STEP)  # remainders that are equal but for 1e-9


def test_others_give_way_alike_and_stop_at_their_bounds() -> None:
    rules = rules_of(Constraints(bounds={"e": (0.1, 1.0)}))
    start = np.array([0.2, 0.2, 0.2, 0.25, 0.15])
    after = moves.moved(rules.fixed(start, ["a"]), start, 1, 0.5)
    assert after.tolist() == [0.2, 0.5, 0.075, 0.125, 0.1]


def test_a_bundle_is_one_variable_that_weighs_as_its_domains_do() -> None:
    rules = rules_of(Constraints(bundles={"code": {"a": 0.5, "b": 0.5}}))
    assert rules.names == ("code", "c", "d", "e")
    start = rules.placed(np.full(5, 0.2))
    assert start.tolist() == [0.4, 0.2, 0.2, 0.2]
    after = moves.moved(rules, start, 1, 0.3)
    # code moves two domains by half each: half the squared distance, so twice as far
    assert after.tolist() == [0.35, 0.3, 0.175, 0.175]
    assert rules.mixture(after).tolist() == [0.175, 0.175, 0.3, 0.175, 0.175]


def test_tokens_that_exist_bound_a_domain() -> None:
    rules = rules_of(Constraints(available={"a": 5e4}, epochs=4))
    assert rules.upper[0] == pytest.approx(0.2)
    assert list(moves.reach(rules, 0)) == pytest.approx([0, 0.2])


def test_a_third_stays_a_third() -> None:
    third = 1 / 3
    rules = rules_of(Constraints(bounds={"a": (third, third)}))
    after = moves.moved(rules, rules.placed(np.full(5, 0.2)), 1, 0.1)
    assert after[0] == pytest.approx(third, abs=1e-9)
    assert rules.broken(after) == ""


def test_no_room_is_said() -> None:
    rules = rules_of(Constraints(bounds={"a": (0.0, 0.3)}))
    start = np.array([0.2, 0.2, 0.2, 0.2, 0.2])
    held = rules.fixed(start, ["b", "c", "d", "e"])
    assert moves.moved(held, start, 0, 0.3)[0] == 0.2  # the others are locked
    narrow = replace(held, upper=np.where(np.arange(5) == 0, 0.1, held.upper))
    with pytest.raises(InputError, match="unlock a domain"):
        moves.nearest(narrow, start)


def test_hundreds_of_proportions_are_finer() -> None:
    names = tuple(f"d{i}" for i in range(200))
    rules = rules_of(Constraints(), names)
    start = rules.placed(np.random.default_rng(0).dirichlet(np.full(200, 0.3)))
    after = moves.moved(rules, start, 7, 0.25)
    assert rules.decimals == 5
    assert round(sum(after) * 1e5) == 100_000
    assert after[7] == 0.25

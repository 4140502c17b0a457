"""The mathematics of a move: the allowed mixture that is nearest to the one before it.

A slider stands for one variable: a domain, or a bundle of domains that keep their proportions to
each other. Proportions are multiples of a step, so that they sum to exactly one as they are shown.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import optimize

from optimization.domain import constraints
from optimization.domain.constraints import Constraints, LinearConstraint
from training.record.errors import InputError

Array = np.ndarray

TINY = 1e-9  # a difference of proportions that is a rounding error
SLACK = 1e-10  # by which rules may be broken, so that rounding errors do not exclude each other
ALMOST = 1e-6  # the same in steps
DECIMALS, MANY_DECIMALS = 4, 5  # of a proportion, of up to MANY variables and of more
MANY = 50
EXACT_DECIMALS = 12  # of a mixture that no multiples of the step can be
NOTHING = "no mixture has the locked proportions and satisfies the bounds; unlock a domain"


@dataclass(frozen=True)
class Rules:
    """The allowed proportions v (M') of the variables: lower ≤ v ≤ upper, Σ v = 1 and, for rules
    on several variables, rows v ≤ limits. The mixture is P v."""

    names: tuple[str, ...]
    spread: Array  # P, (M, M')
    lower: Array  # (M',)
    upper: Array
    rows: Array  # (R, M')
    limits: Array  # (R,)
    row_names: tuple[str, ...]

    @classmethod
    def of(cls, rules: Constraints, domains: Sequence[str], tokens: float) -> Self:
        """The rules of constraints on a target of `tokens`.

        Raises InputError for an unknown domain and for a malformed rule.
        """
        spread = constraints.spread(rules.bundles, domains)
        singles = spread[:, len(rules.bundles) :].argmax(axis=0)
        names = (*rules.bundles, *(domains[i] for i in singles))
        lower, upper = np.zeros(len(names)), np.ones(len(names))
        shared: list[LinearConstraint] = []
        for row in constraints.rows(rules, domains, tokens):
            coefficients = row.coefficients @ spread
            (involved,) = coefficients.nonzero()
            if len(involved) > 1:
                shared.append(LinearConstraint(row.name, coefficients, row.limit))
            for i in involved if len(involved) == 1 else ():
                edge = row.limit / coefficients[i]
                if coefficients[i] > 0:
                    upper[i] = min(upper[i], edge)
                else:
                    lower[i] = max(lower[i], edge)
        return cls(
            names,
            spread,
            *_on_grid(lower, upper, decimals(len(names))),
            np.array([row.coefficients for row in shared]).reshape(-1, len(names)),
            np.array([row.limit for row in shared]),
            tuple(row.name for row in shared),
        )

    @property
    def decimals(self) -> int:
        """Decimals of a proportion."""
        return decimals(len(self.names))

    def placed(self, mixture: Array) -> Array:
        """The proportions of the variables in a mixture (M,), rounded: (M',).

        If the mixture breaks the rules by more than rounding does, so do they.
        """
        proportions = mixture @ (self.spread > 0)
        step = 10.0**-self.decimals
        with suppress(InputError):
            allowed = nearest(self, proportions)
            if np.abs(allowed - proportions).max() < 2 * step:
                return allowed
        free = replace(
            self, lower=0 * self.lower, upper=0 * self.upper + 1,
            rows=self.rows[:0], limits=self.limits[:0], row_names=(),
        )  # fmt: skip
        return rounded(free, proportions / proportions.sum())

    def mixture(self, proportions: Array) -> Array:
        """The mixture P v, (M,), without rounding errors."""
        return (self.spread @ proportions).round(EXACT_DECIMALS)

    def fixed(self, proportions: Array, names: Collection[str]) -> Self:
        """The same rules with some variables held at their proportions, whatever their bounds."""
        held = np.array([name in names for name in self.names])
        return replace(
            self,
            lower=np.where(held, proportions, self.lower),
            upper=np.where(held, proportions, self.upper),
        )

    def broken(self, proportions: Array) -> str:
        """The first rule that proportions (M',) break, in words; empty if they break none."""
        for name, v, low, high in zip(self.names, proportions, self.lower, self.upper, strict=True):
            if not low - TINY <= v <= high + TINY:
                return f"{name} is {v:.4g}, outside its bounds [{low:.4g}, {high:.4g}]"
        over = self.rows @ proportions > self.limits + TINY
        return self.row_names[int(np.argmax(over))] if over.any() else ""


def decimals(variables: int) -> int:
    """Decimals of the proportions of this many variables."""
    return DECIMALS if variables <= MANY else MANY_DECIMALS


def moved(rules: Rules, proportions: Array, index: int, value: float) -> Array:
    """The allowed proportions, (M',), nearest to these in which one has a value.

    The value is first moved into the range that the rules leave. Raises InputError if they leave
    none.
    """
    low, high = reach(rules, index)
    step = 10.0**-rules.decimals
    value = min(max(round(value / step) * step, low), high)
    at = np.arange(len(proportions)) == index
    held = replace(
        rules, lower=np.where(at, value, rules.lower), upper=np.where(at, value, rules.upper)
    )
    return nearest(held, proportions)


def reach(rules: Rules, index: int) -> tuple[float, float]:
    """The lowest and highest proportion that a variable can have.

    Raises InputError if no proportions satisfy the rules.
    """
    low = max(rules.lower[index], 1 - (rules.upper.sum() - rules.upper[index]))
    high = min(rules.upper[index], 1 - (rules.lower.sum() - rules.lower[index]))
    if len(rules.rows):
        extremes = []
        for sign in (1, -1):
            cost = sign * (np.arange(len(rules.names)) == index)
            result = optimize.linprog(
                cost, rules.rows, rules.limits, np.ones((1, len(cost))), [1.0],
                list(zip(rules.lower, rules.upper, strict=True)),
            )  # fmt: skip
            if result.status:
                raise InputError(NOTHING)
            extremes.append(sign * result.fun)
        low, high = max(low, extremes[0]), min(high, extremes[1])
    if low > high + TINY:
        raise InputError(NOTHING)
    ends = _on_grid(np.array([low]), np.array([max(low, high)]), rules.decimals)
    return float(ends[0][0]), float(ends[1][0])


def nearest(rules: Rules, proportions: Array) -> Array:
    """The allowed proportions whose mixture has the least Euclidean distance from that of these,
    (M',), rounded.

    Raises InputError if no proportions satisfy the rules.
    """
    if (rules.lower > rules.upper + TINY).any():
        raise InputError(NOTHING)
    weights = (rules.spread**2).sum(axis=0)  # |P (v − u)|² = Σ weights (v − u)²
    if len(rules.rows):
        exact = _least_distance(rules, proportions, weights)
    else:
        exact = _water_level(rules, proportions, weights)
    return rounded(rules, exact)


def rounded(rules: Rules, proportions: Array) -> Array:
    """Allowed proportions, (M',), as multiples of the step that sum to one and are allowed.

    Those with the largest remainders are rounded up. Proportions that cannot be multiples of the
    step, because a rule fixes one at a third, stay as they are.
    """
    scale = 10**rules.decimals
    floor = np.floor(proportions * scale + ALMOST)
    rest = proportions * scale - floor
    for round_up in (_largest, _largest_allowed) if len(rules.rows) else (_largest,):
        result = (floor + round_up(rules, floor, rest)) / scale
        if abs(result.sum() - 1) < TINY and not rules.broken(result):
            return np.asarray(result.round(rules.decimals))
    return proportions.round(EXACT_DECIMALS)


def _largest(rules: Rules, floor: Array, rest: Array) -> Array:
    """The largest remainders, as many as are missing: (M',) of 0 and 1."""
    ranks = np.argsort(np.argsort(-rest, kind="stable"))
    return (ranks < round(10**rules.decimals - floor.sum())).astype(float)


def _largest_allowed(rules: Rules, floor: Array, rest: Array) -> Array:
    """The same under the rules on several variables, by an integer program; 0 if there is none."""
    missing = 10**rules.decimals - floor.sum()
    room = rules.limits * 10**rules.decimals - rules.rows @ floor
    result = optimize.milp(
        -rest,
        integrality=np.ones(len(rest)),
        bounds=optimize.Bounds(0, (rest > ALMOST).astype(float)),
        constraints=[
            optimize.LinearConstraint(np.ones((1, len(rest))), missing, missing),
            optimize.LinearConstraint(rules.rows, -np.inf, room + ALMOST),
        ],
    )
    return np.zeros(len(rest)) if result.x is None else np.asarray(result.x)


def _water_level(rules: Rules, proportions: Array, weights: Array) -> Array:
    """The nearest proportions within bounds: v = clip(u − λ / weights), where Σ v, piecewise linear
    in λ, is 1."""
    lower, upper = rules.lower, rules.upper
    if lower.sum() > 1 + TINY or upper.sum() < 1 - TINY:
        raise InputError(NOTHING)
    bends = np.concatenate([weights * (proportions - lower), weights * (proportions - upper)])
    bends = np.sort(bends)[::-1]
    sums = np.clip(proportions - bends[:, None] / weights, lower, upper).sum(axis=1)
    level = np.interp(1.0, sums, bends)
    return np.clip(proportions - level / weights, lower, upper)


def _least_distance(rules: Rules, proportions: Array, weights: Array) -> Array:
    """The nearest proportions under all rules, by least-distance programming: Lawson and Hanson,
    Solving Least Squares Problems, chapter 23. min |y| with G y ≥ h, y = √weights (v − u)."""
    one, each = np.ones((1, len(proportions))), np.eye(len(proportions))
    rows = np.vstack([each, -each, -rules.rows, one, -one])
    least = np.concatenate([rules.lower, -rules.upper, -rules.limits, [1.0], [-1.0]])
    least = least - rows @ proportions - SLACK
    matrix = np.vstack([(rows / np.sqrt(weights)).T, least])
    target = np.append(np.zeros(len(proportions)), 1.0)
    multipliers, distance = optimize.nnls(matrix, target, maxiter=10 * len(least))
    if distance < TINY:
        raise InputError(NOTHING)
    residual = matrix @ multipliers - target
    return proportions - residual[:-1] / residual[-1] / np.sqrt(weights)


def _on_grid(lower: Array, upper: Array, places: int) -> tuple[Array, Array]:
    """Bounds moved inwards to multiples of the step; as they are where they would cross."""
    scale = 10**places
    low = np.ceil(lower * scale - ALMOST) / scale + 0.0  # without the sign of a zero
    high = np.floor(upper * scale + ALMOST) / scale
    crossed = low > high
    return np.where(crossed, lower, low), np.where(crossed, upper, high)

"""The set of mixtures that satisfy constraints: who is in it, and a cube that maps onto it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linprog

from optimization.domain import constraints, simplex
from optimization.domain.constraints import Constraints, LinearConstraint
from training.record import keys
from training.record.errors import InputError

Array = np.ndarray

SLACK = 1e-9  # by which a row must be loose somewhere not to count as an equality
BISECTIONS = 60
DECIMALS = 4  # of mixtures that are designed
EXACT_DECIMALS = 12  # that rounding errors do not reach
EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class Ball:
    """The mixtures within the trust region of one fitted mixture."""

    around: Array  # (M,)
    centre: Array  # that allowed mixture which lies nearest to it, (M,)


@dataclass(frozen=True)
class Feasible:
    """The mixtures that satisfy constraints: r = P v with A r ≤ b, Σ v = 1 and v ≥ 0, and within
    the trust region of a fitted mixture."""

    domains: tuple[str, ...]
    spread: Array  # P, (M, M')
    rows: tuple[LinearConstraint, ...]
    lower: Array  # least value of each variable, (M',)
    upper: Array
    inner: Array  # a point of the relative interior, (M',)
    equalities: Array  # orthonormal rows of the directions that cannot vary, (e, M')
    trust: float | None = None
    balls: tuple[Ball, ...] = ()

    @property
    def free(self) -> int:
        """Dimensions of the cube that `from_cube` maps."""
        return len(self.lower) - 1

    @property
    def columns(self) -> list[str]:
        """What tables of mixtures call the domains."""
        return [keys.MIXTURE + domain for domain in self.domains]

    @property
    def matrix(self) -> Array:
        """A P, (rows, M')."""
        return np.array([row.coefficients for row in self.rows]) @ self.spread

    @property
    def limits(self) -> Array:
        """b, (rows,)."""
        return np.array([row.limit for row in self.rows])

    def from_cube(self, points: Array) -> Array:
        """Points of [0, 1]^free, (n, free), as allowed mixtures, (n, M).

        Stick-breaking within the variables' bounds; a point that breaks another rule moves
        towards the inside until it does not. An allowed mixture is the image of `to_cube` of it.
        """
        return self.repaired(simplex.from_cube(points, self.lower, self.upper))

    def to_cube(self, mixtures: Array) -> Array:
        """The inverse of `from_cube` for allowed mixtures, (n, M) → (n, free)."""
        return simplex.to_cube(self.variables(mixtures), self.lower, self.upper)

    def variables(self, mixtures: Array) -> Array:
        """v of mixtures, (n, M) → (n, M'): the proportions of the bundles."""
        return mixtures @ (self.spread > 0)

    def repaired(self, variables: Array) -> Array:
        """Allowed mixtures, (n, M), of variables (n, M') near the set; inside nothing moves."""
        off = (variables - self.inner) @ self.equalities.T
        variables = variables - off @ self.equalities
        steps = variables - self.inner
        room = self.limits - self.matrix @ self.inner
        rates = steps @ self.matrix.T
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(rates > np.maximum(room, 0), room / rates, 1.0)
        reach[:, room < SLACK] = 1.0  # equalities, dealt with above
        scale = np.clip(reach.min(axis=1, initial=1.0), 0, 1)[:, None]
        inside = np.maximum(0.0, self.inner + scale * steps)  # less than 0 by rounding only
        return self._trusted(inside @ self.spread.T)

    def violation(self, mixtures: Array) -> Array:
        """By how much mixtures, (n, M), break the worst rule, (n,); at most 0 when none."""
        broken = [mixtures @ row.coefficients - row.limit for row in self.rows]
        broken.append(np.abs(mixtures.sum(axis=1) - 1))
        broken.append(-mixtures.min(axis=1))
        kept = self.variables(mixtures) @ self.spread.T
        broken.append(np.abs(kept - mixtures).max(axis=1))
        if self.trust is not None:
            around = np.array([ball.around for ball in self.balls])
            broken.append(distances(mixtures, around).min(axis=1) - self.trust)
        return np.max(broken, axis=0)

    def inside(self, mixtures: Array, tolerance: float = 1e-9) -> Array:
        """Whether mixtures, (n, M), are allowed, (n,)."""
        return self.violation(mixtures) <= tolerance

    def shared_rows(self) -> tuple[Array, Array]:
        """Of A P and b those rows that hold between variables; the others are their bounds."""
        shared = (self.matrix != 0).sum(axis=1) > 1
        return self.matrix[shared], self.limits[shared]

    def within_ball(self, ball: Ball) -> tuple[Array, Array]:
        """The shared rows and those of a ball, over (v, e): e_j ≥ r_j − a_j and Σ e ≤ radius."""
        matrix, limits = self.shared_rows()
        each = np.eye(len(self.domains))
        rows = np.block(
            [
                [matrix, np.zeros((len(matrix), len(each)))],
                [self.spread, -each],
                [np.zeros((1, len(self.lower))), np.ones((1, len(each)))],
            ]
        )
        return rows, np.concatenate([limits, ball.around, [self.trust]])

    def broken_rule(self, mixture: Array, tolerance: float) -> str:
        """The first rule, by its words, that a mixture (M,) breaks; empty when none."""
        for row in self.rows:
            if row.coefficients @ mixture > row.limit + tolerance:
                return row.name
        kept = self.variables(mixture[None]) @ self.spread.T
        off = np.abs(kept[0] - mixture)
        if off.max() > tolerance:
            bundle = self.spread[:, self.spread[off.argmax()] > 0].sum(axis=1)
            shares = zip(self.domains, bundle, strict=True)
            return "bundles: " + "+".join(f"{share:g} {d}" for d, share in shares if share > 0)
        if self.trust is not None:
            around = np.array([ball.around for ball in self.balls])
            if distances(mixture[None], around).min() > self.trust + tolerance:
                return f"trust_region: at most {self.trust:g} from a fitted mixture"
        return ""

    def _trusted(self, mixtures: Array) -> Array:
        """Mixtures drawn towards the nearest ball's centre until they lie in the ball."""
        if self.trust is None:
            return mixtures
        around = np.array([ball.around for ball in self.balls])
        nearest = distances(mixtures, around).argmin(axis=1)
        centre = np.array([ball.centre for ball in self.balls])[nearest]
        low, high = np.zeros(len(mixtures)), np.ones(len(mixtures))
        step, target = mixtures - centre, around[nearest]
        outside = np.abs(mixtures - target).sum(axis=1) / 2 > self.trust
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            apart = np.abs(centre + middle[:, None] * step - target).sum(axis=1) / 2
            low, high = np.where(apart <= self.trust, [middle, high], [low, middle])
        return np.where(outside[:, None], centre + low[:, None] * step, mixtures)


def feasible(
    asked: Constraints, domains: Sequence[str], tokens: float, fitted: Array | None = None
) -> Feasible:
    """The set that constraints leave for a target of `tokens`; fitted mixtures (m, M) for a trust
    region.

    Raises InputError for an unknown domain, a rule that cannot be read and rules that no mixture
    satisfies together, which it names.
    """
    spread = constraints.spread(asked.bundles, domains)
    rows = constraints.rows(asked, domains, tokens)
    _refuse_contradiction(rows, spread)
    matrix = np.array([row.coefficients for row in rows]) @ spread
    limits = np.array([row.limit for row in rows])
    variables = len(spread.T)
    corners = [_extreme(matrix, limits, sign * e) for e in np.eye(variables) for sign in (1, -1)]
    lower = np.clip([corner[i] for i, corner in enumerate(corners[::2])], 0, 1)
    upper = np.clip([corner[i] for i, corner in enumerate(corners[1::2])], lower, 1)
    loosest = [_extreme(matrix, limits, row) for row in matrix]
    inner = np.mean([*corners, *loosest], axis=0)
    tight = matrix[limits - matrix @ inner < SLACK]
    fixed = np.eye(variables)[upper - lower < SLACK]
    found = Feasible(
        tuple(domains),
        spread,
        rows,
        lower,
        upper,
        inner,
        _orthonormal(np.vstack([np.ones((1, variables)), fixed, tight])),
    )
    if asked.trust is None:
        return found
    assert fitted is not None
    return _within_trust(found, asked.trust, fitted)


def distances(mixtures: Array, others: Array) -> Array:
    """The share of tokens that separates mixtures from others, (n, m)."""
    return np.abs(mixtures[:, None] - others).sum(axis=2) / 2


def _refuse_contradiction(rows: Sequence[LinearConstraint], spread: Array) -> None:
    """Raise InputError that names a smallest set of rows which no mixture satisfies together."""

    def possible(some: Sequence[LinearConstraint]) -> bool:
        matrix = np.array([row.coefficients for row in some]) @ spread
        limits = np.array([row.limit for row in some])
        return bool(_solve(matrix, limits, np.zeros(len(spread.T))).status == 0)

    if possible(rows):
        return
    needed = list(rows)
    for row in rows:
        without = [other for other in needed if other is not row]
        if without and not possible(without):
            needed = without
    named = "; ".join(row.name for row in needed)
    raise InputError(f"no mixture satisfies all of: {named}; change one of them")


def _within_trust(found: Feasible, trust: float, fitted: Array) -> Feasible:
    if not 0 <= trust <= 1:
        raise InputError(f"trust_region: {trust:g}; it is a share of tokens, from 0 to 1")
    inside = found.inside(fitted)
    centres = [
        mixture if ok else _nearest(found, mixture)
        for mixture, ok in zip(fitted, inside, strict=True)
    ]
    apart = np.array([np.abs(a - c).sum() / 2 for a, c in zip(fitted, centres, strict=True)])
    balls = [
        Ball(around, centre)
        for around, centre, distance in zip(fitted, centres, apart, strict=True)
        if distance <= trust
    ]
    if not balls:
        raise InputError(
            f"trust_region: no mixture within {trust:g} of a fitted one satisfies the other "
            f"constraints; the nearest that does is {apart.min():.4g} away. Raise trust_region, "
            "loosen the others, or train mixtures that satisfy them"
        )
    return replace(found, trust=trust, balls=tuple(balls))


def _nearest(found: Feasible, mixture: Array) -> Array:
    """The allowed mixture, trust region aside, with the least distance from one, (M,)."""
    variables, domains = len(found.lower), len(mixture)
    each = np.eye(domains)
    matrix = np.block(
        [
            [found.matrix, np.zeros((len(found.rows), domains))],
            [found.spread, -each],
            [-found.spread, -each],
        ]
    )
    limits = np.concatenate([found.limits, mixture, -mixture])
    cost = np.concatenate([np.zeros(variables), np.ones(domains)])
    result = _solve(matrix, limits, cost, sums=variables)
    return found.repaired(result.x[None, :variables])[0]


def _extreme(matrix: Array, limits: Array, direction: Array) -> Array:
    """The point (M',) of the polytope that lies least far in a direction."""
    return np.asarray(_solve(matrix, limits, direction).x)


def _solve(matrix: Array, limits: Array, cost: Array, sums: int | None = None) -> Any:
    """A linear program over variables >= 0, the first `sums` of which (all) sum to one."""
    ones = (np.arange(len(cost)) < (sums or len(cost))).astype(float)
    return linprog(cost, A_ub=matrix, b_ub=limits, A_eq=ones[None], b_eq=[1.0], options=EXACT)


def _orthonormal(rows: Array) -> Array:
    """An orthonormal basis, (e, M'), of what rows span."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(basis[sizes > SLACK * sizes.max()])


def tidy(mixtures: Array, allowed: Feasible) -> Array:
    """Allowed mixtures (n, M) of four decimals, as far as the constraints leave them.

    They are the same to the last bit wherever they are computed: a run is known by its mixture.
    """
    v = np.array([simplex.rounded(row, DECIMALS) for row in allowed.variables(mixtures)])
    plain = (v @ allowed.spread.T).round(EXACT_DECIMALS)
    repaired = allowed.repaired(v).round(EXACT_DECIMALS)
    return np.where(allowed.inside(plain)[:, None], plain, repaired)

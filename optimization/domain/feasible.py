"""The set of mixtures that satisfy constraints: membership, and a cube that maps onto it."""

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

SLACK = 1e-9  # a row that is nowhere looser than this counts as an equality
BISECTIONS = 60
DECIMALS = 4  # of designed mixtures
ROUNDING = 10**-DECIMALS  # designed mixtures that are no farther apart are the same
EXACT_DECIMALS = 12  # free of rounding errors
EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@dataclass(frozen=True)
class Ball:
    """The mixtures within the trust region of one fitted mixture."""

    around: Array  # (M,)
    centre: Array  # the allowed mixture nearest to it, (M,)


@dataclass(frozen=True)
class Feasible:
    """The mixtures that satisfy constraints: r = P v with A r ≤ b, Σ v = 1 and v ≥ 0, and within
    the trust region of a fitted mixture."""

    domains: tuple[str, ...]
    spread: Array  # P, (M, M')
    rows: tuple[LinearConstraint, ...]
    lower: Array  # lowest value of each variable, (M',)
    upper: Array
    inner: Array  # a point in the relative interior, (M',)
    equalities: Array  # orthonormal rows of the directions that cannot vary, (e, M')
    trust: float | None = None
    balls: tuple[Ball, ...] = ()

    @property
    def free(self) -> int:
        """Dimensions of the cube that `from_cube` takes."""
        return len(self.lower) - 1

    @property
    def columns(self) -> list[str]:
        """The columns of the domains in tables of mixtures."""
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
        inwards until it does not. An allowed mixture is the image of its own `to_cube`.
        """
        return self.repaired(simplex.from_cube(points, self.lower, self.upper))

    def to_cube(self, mixtures: Array) -> Array:
        """The inverse of `from_cube` for allowed mixtures, (n, M) → (n, free)."""
        return simplex.to_cube(self.variables(mixtures), self.lower, self.upper)

    def variables(self, mixtures: Array) -> Array:
        """v of mixtures, (n, M) → (n, M'): the proportions of the bundles."""
        return mixtures @ (self.spread > 0)

    def repaired(self, variables: Array) -> Array:
        """Allowed mixtures, (n, M), from variables (n, M') near the set; inside, nothing moves."""
        off = (variables - self.inner) @ self.equalities.T
        variables = variables - off @ self.equalities
        steps = variables - self.inner
        room = self.limits - self.matrix @ self.inner
        rates = steps @ self.matrix.T
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(rates > np.maximum(room, 0), room / rates, 1.0)
        reach[:, room < SLACK] = 1.0  # equalities, handled above
        scale = np.clip(reach.min(axis=1, initial=1.0), 0, 1)[:, None]
        inside = np.maximum(0.0, self.inner + scale * steps)  # below 0 only by rounding
        return self._trusted(inside @ self.spread.T)

    def violation(self, mixtures: Array) -> Array:
        """By how much mixtures (n, M) break their worst rule, (n,); at most 0 if none is broken."""
        broken = [mixtures @ row.coefficients - row.limit for row in self.rows]
        broken.append(np.abs(mixtures.sum(axis=1) - 1))
        broken.append(-mixtures.min(axis=1))
        rebuilt = self.variables(mixtures) @ self.spread.T
        broken.append(np.abs(rebuilt - mixtures).max(axis=1))
        if self.trust is not None:
            around = np.array([ball.around for ball in self.balls])
            broken.append(distances(mixtures, around).min(axis=1) - self.trust)
        return np.max(broken, axis=0)

    def inside(self, mixtures: Array, tolerance: float = 1e-9) -> Array:
        """Whether mixtures, (n, M), are allowed, (n,)."""
        return self.violation(mixtures) <= tolerance

    def shared_rows(self) -> tuple[Array, Array]:
        """The rows of A P and b that involve several variables; the others are bounds."""
        shared = (self.matrix != 0).sum(axis=1) > 1
        return self.matrix[shared], self.limits[shared]

    def within_ball(self, ball: Ball) -> tuple[Array, Array]:
        """The shared rows and the rows of a ball, over (v, e): e_j ≥ r_j − a_j and Σ e ≤ radius."""
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
        """The first rule that a mixture (M,) breaks, in words; empty if it breaks none."""
        for row in self.rows:
            if row.coefficients @ mixture > row.limit + tolerance:
                return row.name
        rebuilt = self.variables(mixture[None]) @ self.spread.T
        off = np.abs(rebuilt[0] - mixture)
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
        """Mixtures, each moved towards the centre of the nearest ball until it lies inside."""
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
    rules: Constraints, domains: Sequence[str], tokens: float, fitted: Array | None = None
) -> Feasible:
    """The mixtures that satisfy the rules for a target of `tokens`. A trust region needs the
    fitted mixtures (m, M).

    Raises InputError for an unknown domain, for a malformed rule, and for rules that no mixture
    satisfies together, which the error names.
    """
    spread = constraints.spread(rules.bundles, domains)
    rows = constraints.rows(rules, domains, tokens)
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
    allowed = Feasible(
        tuple(domains),
        spread,
        rows,
        lower,
        upper,
        inner,
        _orthonormal(np.vstack([np.ones((1, variables)), fixed, tight])),
    )
    if rules.trust is None:
        return allowed
    assert fitted is not None
    return _within_trust(allowed, rules.trust, fitted)


def distances(mixtures: Array, others: Array) -> Array:
    """The share of tokens by which mixtures (n, M) differ from others (m, M), (n, m)."""
    return np.abs(mixtures[:, None] - others).sum(axis=2) / 2


def _refuse_contradiction(rows: Sequence[LinearConstraint], spread: Array) -> None:
    """Raise InputError, with a minimal set of contradicting rows, if no mixture satisfies all."""

    def possible(subset: Sequence[LinearConstraint]) -> bool:
        matrix = np.array([row.coefficients for row in subset]) @ spread
        limits = np.array([row.limit for row in subset])
        return bool(_solve(matrix, limits, np.zeros(len(spread.T))).status == 0)

    if possible(rows):
        return
    needed = list(rows)
    for row in rows:
        without = [r for r in needed if r is not row]
        if without and not possible(without):
            needed = without
    named = "; ".join(row.name for row in needed)
    raise InputError(f"no mixture satisfies all of: {named}; change one of them")


def _within_trust(allowed: Feasible, trust: float, fitted: Array) -> Feasible:
    if not 0 <= trust <= 1:
        raise InputError(f"trust_region: {trust:g}; it is a share of tokens, from 0 to 1")
    inside = allowed.inside(fitted)
    centres = [
        mixture if ok else _nearest(allowed, mixture)
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
    return replace(allowed, trust=trust, balls=tuple(balls))


def _nearest(allowed: Feasible, mixture: Array) -> Array:
    """The allowed mixture nearest to a mixture (M,), ignoring the trust region, (M,)."""
    variables, domains = len(allowed.lower), len(mixture)
    each = np.eye(domains)
    matrix = np.block(
        [
            [allowed.matrix, np.zeros((len(allowed.rows), domains))],
            [allowed.spread, -each],
            [-allowed.spread, -each],
        ]
    )
    limits = np.concatenate([allowed.limits, mixture, -mixture])
    cost = np.concatenate([np.zeros(variables), np.ones(domains)])
    result = _solve(matrix, limits, cost, sums=variables)
    return allowed.repaired(result.x[None, :variables])[0]


def _extreme(matrix: Array, limits: Array, direction: Array) -> Array:
    """The point (M',) of the polytope that minimises direction · v."""
    return np.asarray(_solve(matrix, limits, direction).x)


def _solve(matrix: Array, limits: Array, cost: Array, sums: int | None = None) -> Any:
    """A linear program over variables >= 0; the first `sums` of them (None: all) sum to one."""
    ones = (np.arange(len(cost)) < (sums or len(cost))).astype(float)
    return linprog(cost, A_ub=matrix, b_ub=limits, A_eq=ones[None], b_eq=[1.0], options=EXACT)


def _orthonormal(rows: Array) -> Array:
    """An orthonormal basis, (e, M'), of the span of rows."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(basis[sizes > SLACK * sizes.max()])


def tidy(mixtures: Array, allowed: Feasible) -> Array:
    """Allowed mixtures (n, M), rounded to four decimals as far as the constraints permit.

    The result is the same to the last bit on every machine: a run is identified by its mixture.
    """
    v = np.array([simplex.rounded(row, DECIMALS) for row in allowed.variables(mixtures)])
    plain = (v @ allowed.spread.T).round(EXACT_DECIMALS)
    repaired = allowed.repaired(v).round(EXACT_DECIMALS)
    return np.where(allowed.inside(plain)[:, None], plain, repaired)

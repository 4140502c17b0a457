"""Local descent from a mixture to an optimum of an objective among the allowed mixtures."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.optimize import minimize

from optimization.domain.differences import Differences
from optimization.domain.feasible import Ball, Feasible
from optimization.domain.objective import LEAST, Objective

Array = np.ndarray

TEMPERATURES = (1e-2, 1e-3, 1e-4, 1e-5)  # nats per token, of the smooth maximum of several sums
TOLERANCE = 1e-13
ITERATIONS = 300
STEPS_BACK, LOOKS = 201, (4, 16, 64)  # points on a line, and where the looks at them end
LEVEL_TOLERANCE = 1e-9
ROUNDS, ENOUGH = 4, 1e-7  # of SLSQP, which may stop early; nats per token that call for another
OFF_FACES = 1e-3  # share of the way to an inner point: on a face SLSQP may stay, in s or in r
NUDGE = 1e-3  # share of the way to the furthest corner at which a search starts
Limit = Objective | Differences


def descend(objective: Objective, feasible: Feasible, start: Array) -> Array:
    """An allowed mixture, (M,), that is no worse than the allowed start.

    In a trust region it stays in the ball whose mixture is nearest to the start.
    """
    if not feasible.free:
        return start
    best, least = start, float(objective(start[None])[0])
    for temperature in TEMPERATURES if len(objective.offsets) > 1 else (1.0,):
        problem = _Problem(objective, feasible, _ball(feasible, start), temperature)
        for _ in range(ROUNDS):
            end = problem.solve(best)
            value = float(objective(end[None])[0])
            gained = least - value
            if gained > 0:
                best, least = end, value
            if gained < ENOUGH:
                break
    return best


def furthest(differences: Differences, feasible: Feasible, near: Array, direction: Array) -> Array:
    """The near-optimal mixture, (M,), that lies furthest in a direction (M,).

    A mixture is near-optimal if it cannot be distinguished from the base of the differences, an
    allowed mixture. The result is the best of local descents. They start near the base, on the line
    to the furthest corner, and at the furthest of `near` (n, M), known near-optimal mixtures. In a
    trust region they stay within one ball.
    """
    base = differences.base
    if not feasible.free:
        return base
    ball = _ball(feasible, base)
    problem = _Problem(differences.objective, feasible, ball, TEMPERATURES[-1], direction=direction)
    corner = problem.solve(base)
    limited = replace(problem, limit=differences, level=0.0)
    starts = [
        base + NUDGE * (corner - base),  # at the base the limit has a kink
        _back_inside(differences, 0.0, base, corner),
        *near[np.argsort(near @ direction)[-1:]],
    ]
    ends = [_back_inside(differences, 0.0, base, limited.solve(start)) for start in starts]
    return max([base, *starts[1:], *ends], key=lambda mixture: float(direction @ mixture))


def descend_within(
    objective: Objective, limit: Objective, level: float, feasible: Feasible, start: Array
) -> Array:
    """An allowed mixture, (M,), that is no worse than the start and whose limit is at most `level`.

    The start must satisfy the level too. Both objectives are one sum each.
    """
    if not feasible.free:
        return start
    problem = _Problem(objective, feasible, _ball(feasible, start), 1.0, limit=limit, level=level)
    end = _back_inside(limit, level, start, problem.solve(start))
    return end if objective(end[None])[0] < objective(start[None])[0] else start


def _back_inside(limit: Limit, level: float, start: Array, end: Array) -> Array:
    """The point (M,) nearest to the end, on the line to the start, that satisfies the level.

    SLSQP may end slightly beyond the level, so that the point is mostly among the first: ever more
    are looked at.
    """
    shares = np.linspace(1, 0, STEPS_BACK)[:, None]
    line = shares * end + (1 - shares) * start
    for some in np.split(line, LOOKS):
        within = limit(some) <= level + LEVEL_TOLERANCE
        if within.any():
            return np.asarray(some[np.argmax(within)])
    return end


def _ball(feasible: Feasible, start: Array) -> Ball | None:
    if feasible.trust is None:
        return None
    return min(feasible.balls, key=lambda ball: float(np.abs(ball.around - start).sum()))


@dataclass(frozen=True)
class _Problem:
    """The problem for SLSQP: x = (s, e) with the variables v = s^(1/q) and, in a trust region, the
    excess e_j ≥ r_j − a_j over the ball's mixture a, Σ e ≤ the region's radius.

    q is the power of the law's φ: in s the losses are smooth up to the faces of the simplex,
    where the slope in r is infinite.
    """

    objective: Objective
    feasible: Feasible
    ball: Ball | None
    temperature: float
    direction: Array | None = None  # maximised instead of minimising the objective, (M,)
    limit: Limit | None = None  # must not exceed the level
    level: float = np.inf

    @cached_property
    def power(self) -> float:
        return float(getattr(self.objective.surface, "power", 1.0) or 1.0)

    def solve(self, start: Array) -> Array:
        f = self.feasible
        v = f.variables(start[None])[0]
        v += OFF_FACES * (f.inner - v)
        x = v**self.power
        box = list(zip(f.lower**self.power, f.upper**self.power, strict=True))
        total = np.ones((1, len(x)))
        matrix, limits = f.shared_rows()
        if self.ball is not None:
            domains = len(start)
            x = np.concatenate([x, np.maximum(0.0, f.spread @ v - self.ball.around)])
            box += [(0.0, 1.0)] * domains
            total = np.pad(total, ((0, 0), (0, domains)))
            matrix, limits = f.within_ball(self.ball)
        rules = [self._linear("eq", total, np.ones(1))]
        if len(limits):
            rules.append(self._linear("ineq", -matrix, -limits))
        if self.limit is not None and np.isfinite(self.level):
            rules.append(self._within_level(self.limit))
        solution = minimize(
            self._value if self.direction is None else self._distance,
            x,
            jac=True,
            method="SLSQP",
            bounds=box,
            constraints=rules,
            options={"ftol": TOLERANCE, "maxiter": ITERATIONS},
        ).x
        if not np.isfinite(solution).all():
            return start
        v = np.clip(self._variables(solution), f.lower, f.upper)
        return f.repaired(v[None])[0]

    def _variables(self, x: Array) -> Array:
        return np.maximum(x[: len(self.feasible.lower)], 0.0) ** (1 / self.power)

    def _value(self, x: Array, limit: Limit | None = None) -> tuple[float, Array]:
        mixture = self.feasible.spread @ self._variables(x)
        value, slope = (limit or self.objective).smooth(mixture, self.temperature)
        return value, self._slope(x, slope)

    def _distance(self, x: Array) -> tuple[float, Array]:
        assert self.direction is not None
        mixture = self.feasible.spread @ self._variables(x)
        return -float(self.direction @ mixture), -self._slope(x, self.direction)

    def _slope(self, x: Array, slope: Array) -> Array:
        """A gradient in r, (M,), converted to x."""
        v = self._variables(x)
        inner = np.maximum(v, LEAST) ** (1 - self.power) / self.power  # dv/ds
        return np.concatenate([inner * (self.feasible.spread.T @ slope), np.zeros(len(x) - len(v))])

    def _within_level(self, limit: Limit) -> dict[str, Any]:
        @lru_cache(maxsize=1)  # SLSQP asks for the slopes where it just asked for the room
        def at(x: bytes) -> tuple[float, Array]:
            return self._value(np.frombuffer(x), limit)

        def room(x: Array) -> float:
            return self.level - at(x.tobytes())[0]

        def slopes(x: Array) -> Array:
            return -at(x.tobytes())[1]

        return {"type": "ineq", "fun": room, "jac": slopes}

    def _linear(self, kind: str, rows: Array, limits: Array) -> dict[str, Any]:
        """The constraint on rows · (v, e) − limits, with its slopes in x."""

        def room(x: Array) -> Array:
            v = self._variables(x)
            return rows @ np.concatenate([v, x[len(v) :]]) - limits

        def slopes(x: Array) -> Array:
            v = self._variables(x)
            inner = v ** (1 - self.power) / self.power
            return rows * np.concatenate([inner, np.ones(len(x) - len(v))])

        return {"type": kind, "fun": room, "jac": slopes}

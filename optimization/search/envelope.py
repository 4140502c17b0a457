"""The least value of a sum of functions of one variable each, bounded from below.

min Σ_b h_b(v_b) over a polytope, h_b(v) = Σ_t c_tb φ_tb(v), each φ a power or a logarithm. Between
two points of a grid the convex terms of h_b lie above their tangents and the concave ones above
their chord. The lower convex hull of these lines lies below h_b everywhere, and the sum of the
hulls has its least value by one linear program.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack
from scipy.special import xlogy

Array = np.ndarray

INFEASIBLE = 2  # linprog's status
EVEN, NEAR, CLOSEST = 33, 41, 1e-11  # points of a grid: even ones, and ever nearer to the mixture


@dataclass(frozen=True)
class Sum:
    """h(v) = entropy · v log v + Σ_t coefficients_t φ_t(v), φ_t(v) = (scale_t v)^power_t or
    log(scale_t v + ε)."""

    coefficients: Array  # (T,)
    powers: Array  # (T,); 0 for the logarithm
    scales: Array  # (T,)
    offset: float  # ε
    entropy: float = 0.0  # at least 0

    def hull(self, low: float, high: float, at: float) -> Array:
        """Points (v, value) of a convex function below h on [low, high], (k, 2); `at` is a point
        where it should be near."""
        if high <= low:
            return np.array([[low, self.value(np.array([low]))[0]]])
        steps = (high - low) * np.geomspace(CLOSEST, 1.0, NEAR)
        grid = np.concatenate([np.linspace(low, high, EVEN), [at], at + steps, at - steps])
        grid = np.unique(np.clip(np.concatenate([grid, low + steps]), low, high))
        value, slope = self.value(grid), self._slope(grid)
        left, right = grid[:-1], grid[1:]
        concave = self.value(grid, convex=False)
        convex = value - concave
        chord = np.diff(concave) / np.diff(grid)
        # where the tangents of the convex part at both ends of an interval meet; at 0 the slope may
        # be infinite, and the tangent at the other end is left
        finite = np.isfinite(slope[:-1])
        first = np.where(finite, slope[:-1], 0.0)
        rise = np.where(finite, slope[1:] - first, 0.0)
        gap = convex[:-1] - convex[1:] + slope[1:] * right - first * left
        meet = np.where(rise > 0, gap / np.where(rise > 0, rise, 1.0), left)
        meet = np.clip(meet, left, right)
        tangent = convex[1:] + slope[1:] * (meet - right)
        tangent = np.where(
            finite, np.maximum(tangent, convex[:-1] + first * (meet - left)), tangent
        )
        below = tangent + concave[:-1] + chord * (meet - left)
        points = np.column_stack([np.concatenate([grid, meet]), np.concatenate([value, below])])
        return _lower_hull(points)

    def _is_convex(self) -> Array:
        rises_faster = self.powers >= 1
        return np.where(
            self.powers == 0, self.coefficients < 0, (self.coefficients > 0) == rises_faster
        )

    def value(self, v: Array, *, convex: bool | None = None) -> Array:
        """h, or the sum of its convex or concave terms alone, (n,)."""
        taken = np.ones(len(self.powers), bool) if convex is None else self._is_convex() == convex
        terms = self._terms(v)[:, taken].sum(axis=1)
        return terms if convex is False else terms + self.entropy * xlogy(v, v)

    def _terms(self, v: Array) -> Array:
        x = v[:, None] * self.scales
        logarithm = np.log(x + self.offset)
        return self.coefficients * np.where(self.powers == 0, logarithm, x**self.powers)

    def _slope(self, v: Array) -> Array:
        """Of the convex terms, (n,); infinite at 0 where a power is below 1."""
        taken = self._is_convex() & (self.coefficients != 0)
        x = v[:, None] * self.scales[taken]
        powers, logarithm = self.powers[taken], self.powers[taken] == 0
        with np.errstate(divide="ignore"):
            rates = np.where(logarithm, 1.0, powers) * x ** np.where(logarithm, 0.0, powers - 1)
            entropy = self.entropy * (np.log(v) + 1) if self.entropy else 0.0
        rates = np.where(logarithm, 1 / (x + self.offset), rates)
        return entropy + (rates * (self.coefficients * self.scales)[taken]).sum(axis=1)


def least(hulls: Sequence[Array], matrix: Array, limits: Array, total: int) -> tuple[float, Array]:
    """The least Σ_b hull_b(v_b) where matrix · x ≤ limits and Σ v = 1, and the v, (total,), of it.

    x are the variables v and others that are ≥ 0. The value is infinite where nothing is allowed,
    and −∞ where the linear program has no answer.
    """
    others = matrix.shape[1] - total
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    right: list[float] = []
    for b, points in enumerate(hulls):
        slopes = np.diff(points[:, 1]) / np.diff(points[:, 0]) if len(points) > 1 else np.zeros(1)
        for slope, (v, value) in zip(slopes, points, strict=False):  # t_b ≥ value + slope (v_b − v)
            rows += [len(right)] * 2
            columns += [b, total + others + b]
            values += [slope, -1.0]
            right.append(slope * v - value)
    size = 2 * total + others
    lines = csr_array((values, (rows, columns)), shape=(len(right), size))
    rules = hstack([csr_array(matrix), csr_array((len(limits), total))])
    box = [(float(p[0, 0]), float(p[-1, 0])) for p in hulls]
    solved = linprog(
        np.concatenate([np.zeros(total + others), np.ones(total)]),
        A_ub=vstack([lines, rules]),
        b_ub=np.concatenate([right, limits]),
        A_eq=np.concatenate([np.ones(total), np.zeros(others + total)])[None],
        b_eq=[1.0],
        bounds=[*box, *[(0.0, None)] * others, *[(None, None)] * total],
    )
    low, high = np.array(box).T
    if solved.status == 0:  # within the solver's tolerance
        return float(solved.fun), np.clip(solved.x[:total], low, high)
    return np.inf if solved.status == INFEASIBLE else -np.inf, low


def _lower_hull(points: Array) -> Array:
    """The corners of the lower convex hull of points (n, 2), from left to right."""
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    points = points[np.append(True, np.diff(points[:, 0]) > 0)]
    hull: list[Array] = []
    for point in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (point[0] - x0) < (point[1] - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append(point)
    return np.array(hull)

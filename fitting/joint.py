"""Fit the joint law: scale terms by variable projection, then the mixing law on what is left."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from fitting import solve
from fitting.laws import JointLaw, features
from fitting.table import Observations

Array = np.ndarray

EXPONENT_BOUNDS = (np.log(0.02), np.log(4.0))  # of log α and log β
SHRINK_BOUNDS = (0.0, 1.0)  # of g and h
STARTS = np.log(np.geomspace(0.1, 2.0, 5))  # of log α and log β
EXACT = 1e-16  # relative residual of a perfect fit


@dataclass(frozen=True)
class ScaleFit:
    """L = c + M_m · s(N, D) + A n^-α + B d^-β with a free level M for every mixture."""

    n0: float
    d0: float
    alpha: float
    beta: float
    g: float
    h: float
    constant: Array  # (V,)
    size: Array  # (V,)
    step: Array  # (V,)
    levels: Array  # M, (m, V)


def fit_scales(observations: Observations, *, shrinking: bool) -> ScaleFit:
    """Exponents by an outer search; all else is linear in closed form (variable projection).

    One model size (or one length) leaves no size (or step) term.
    """
    problem = _ScaleProblem(observations, shrinking)
    shrink = 0.1 if shrinking else 0.0
    starts = [np.array([a, b, shrink, shrink]) for a, b in product(STARTS, STARTS)]
    found = minimize(
        lambda theta: np.log(problem.solve(theta)[0] + EXACT),  # scaled to the noise
        min(starts, key=lambda theta: problem.solve(theta)[0]),
        method="L-BFGS-B",
        bounds=[EXPONENT_BOUNDS] * 2 + [SHRINK_BOUNDS if shrinking else (0.0, 0.0)] * 2,
    )
    return problem.result(found.x)


class _ScaleProblem:
    """Residual sum of squares as a function of (log α, log β, g, h)."""

    def __init__(self, observations: Observations, shrinking: bool) -> None:
        o = observations
        self.n0, self.d0 = float(o.n_params.max()), float(o.tokens.max())
        self.log_n = np.log(o.n_params / self.n0)
        self.log_d = np.log(o.tokens / self.d0)
        self.sizes, self.lengths = np.ptp(self.log_n) > 0, np.ptp(self.log_d) > 0
        self.shrinking = shrinking
        self.mixture_of, self.count = o.mixture_of, len(o.mixtures)
        self.losses = o.losses
        self.scale = float(((o.losses - o.losses.mean(axis=0)) ** 2).sum()) or 1.0

    def _columns(self, theta: Array) -> tuple[Array, Array]:
        """The mixture term's factor s, (rows,), and the columns 1, n^-α, d^-β, (rows, 3)."""
        alpha, beta = np.exp(theta[:2])
        s = np.exp(-theta[2] * self.log_d - theta[3] * self.log_n)
        one = np.ones_like(s) if self.shrinking else np.zeros_like(s)
        size = np.exp(-alpha * self.log_n) if self.sizes else np.zeros_like(s)
        step = np.exp(-beta * self.log_d) if self.lengths else np.zeros_like(s)
        return s, np.column_stack([one, size, step])

    def _levels(self, s: Array, values: Array) -> Array:
        """Least-squares level of each mixture's s, (m, columns)."""
        weight = np.bincount(self.mixture_of, s * s, self.count)
        sums = [np.bincount(self.mixture_of, s * v, self.count) for v in values.T]
        return np.stack(sums, axis=1) / weight[:, None]

    def solve(self, theta: Array) -> tuple[float, Array, Array]:
        """(relative residual sum of squares, coefficients (3, V), levels (m, V))."""
        s, columns = self._columns(theta)
        y_levels, x_levels = self._levels(s, self.losses), self._levels(s, columns)
        y = self.losses - s[:, None] * y_levels[self.mixture_of]
        x = columns - s[:, None] * x_levels[self.mixture_of]
        coefficients = _non_negative(x.T @ x, x.T @ y)
        residual = y - x @ coefficients
        levels = y_levels - x_levels @ coefficients
        return float((residual**2).sum()) / self.scale, coefficients, levels

    def result(self, theta: Array) -> ScaleFit:
        _, (constant, size, step), levels = self.solve(theta)
        alpha, beta = (float(e) for e in np.exp(theta[:2]))
        g, h = float(theta[2]), float(theta[3])
        return ScaleFit(self.n0, self.d0, alpha, beta, g, h, constant, size, step, levels)


def _non_negative(gram: Array, right: Array) -> Array:
    """Least squares, (3, V), whose size and step coefficients (rows 1 and 2) are at least 0.

    The best feasible of the four choices of which of the two are zero.
    """
    ridge = 1e-9 * max(float(np.trace(gram)), 1e-30)
    best = np.zeros_like(right)
    best_gain = np.zeros(right.shape[1])
    for active in ([0], [0, 1], [0, 2], [0, 1, 2]):
        sub = gram[np.ix_(active, active)] + ridge * np.eye(len(active))
        found = np.zeros_like(right)
        found[active] = np.linalg.solve(sub, right[active])
        gain = 2 * (found * right).sum(axis=0) - np.einsum("kv,kl,lv->v", found, gram, found)
        take = (gain > best_gain) & (found[1:] >= 0).all(axis=0)
        best[:, take], best_gain[take] = found[:, take], gain[take]
    return best


def fit_mixing(scales: ScaleFit, mixtures: Array, power: float, ridges: Array) -> list[JointLaw]:
    """The joint law, one a ridge: an exponential of the mixture through each domain's levels."""
    found = solve.exponentials_by_ridge(features(mixtures, power), scales.levels.T, ridges)
    return [
        JointLaw(
            power=power,
            n0=scales.n0,
            d0=scales.d0,
            alpha=scales.alpha,
            beta=scales.beta,
            g=scales.g,
            h=scales.h,
            constant=scales.constant,
            floor=e.floor,
            log_scale=e.log_scale,
            slope=e.slope,
            size=scales.size,
            step=scales.step,
        )
        for e in found
    ]

"""Fit the joint law: scale terms by variable projection, then the mixing law on what is left."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize

from fitting.artifact.laws import JointLaw, features
from fitting.data.observations import Observations
from fitting.estimators import least_squares
from fitting.estimators.least_squares import Exponentials

Array = np.ndarray

BOUNDS = [(np.log(0.02), np.log(4.0))] * 2 + [(0.0, 1.0)] * 2  # of log α, log β, g, h
STARTS = np.log(np.geomspace(0.1, 2.0, 4))  # of log α and log β
USUAL = np.log(0.35)  # where α or β go when the data say nothing, as two sizes do of α
PRIOR = 1e-4  # of the relative residual, a square of log α or log β; and of g and h
LEVEL_VARIANCE = 100.0  # of what mixtures add, relative to the noise
EXACT = 1e-16  # relative residual of a perfect fit


@dataclass(frozen=True)
class ScaleFit:
    """L = c + M_m · n^-h d^-g + A n^-α + B d^-β with a free level M of mean 0 for every mixture."""

    n0: float
    d0: float
    alpha: Array  # (V,)
    beta: Array  # (V,)
    g: Array  # (V,)
    h: Array  # (V,)
    constant: Array  # (V,)
    size: Array  # (V,)
    step: Array  # (V,)
    levels: Array  # M, (m, V)

    def predict(self, mixture_of: Array, n_params: Array, tokens: Array) -> Array:
        """Losses, (n, V), of fitted mixtures, by their index (n,), at n_params and tokens (n,)."""
        n, d = n_params[:, None] / self.n0, tokens[:, None] / self.d0
        mixing = self.levels[mixture_of] * n**-self.h * d**-self.g
        return self.constant + mixing + self.size * n**-self.alpha + self.step * d**-self.beta


def fit_scales(
    observations: Observations,
    *,
    shrinking: bool,
    tie: str = "all",
    counts: Array | None = None,
    start: ScaleFit | None = None,
) -> ScaleFit:
    """Exponents by an outer search; all else is linear in closed form (variable projection).

    tie: exponents shared by "all" domains, or one set a "domain". counts (m,): how often each
    mixture counts, for the bootstrap. `start` is a fit to similar data. One model size (or one
    length) leaves no size (or step) term.
    """
    problem = _ScaleProblem(observations, shrinking, counts)
    if tie == "all":
        return problem.fit(start)
    parts = [
        problem.of_domain(v).fit(start and _one_domain(start, v))
        for v in range(len(observations.val_domains))
    ]
    joined: dict[str, Any] = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1)
        for f in fields(ScaleFit)
        if f.name not in ("n0", "d0")
    }
    return replace(parts[0], **joined)


def _one_domain(fit: ScaleFit, v: int) -> ScaleFit:
    names = ("alpha", "beta", "g", "h")
    return replace(fit, **{name: getattr(fit, name)[v : v + 1] for name in names})


class _ScaleProblem:
    """Residual sum of squares as a function of θ = (log α, log β, g, h)."""

    def __init__(
        self, observations: Observations, shrinking: bool, counts: Array | None = None
    ) -> None:
        o = observations
        self.n0, self.d0 = float(o.n_params.max()), float(o.tokens.max())
        self.log_n = np.log(o.n_params / self.n0)
        self.log_d = np.log(o.tokens / self.d0)
        self.sizes, self.lengths = np.ptp(self.log_n) > 0, np.ptp(self.log_d) > 0
        self.shrinks = np.array([shrinking and self.lengths, shrinking and self.sizes])
        self.mixture_of = o.mixture_of
        self.member = np.zeros((len(o.mixtures), len(o.losses)))  # mixture × row
        self.member[o.mixture_of, np.arange(len(o.losses))] = 1
        self.weights = np.ones(len(o.losses)) if counts is None else counts[o.mixture_of]
        deviations = np.ones(o.losses.shape[1])
        if o.noise is not None and o.noise.deviations.all():
            deviations = o.noise.deviations
        self.unit = deviations / np.sqrt((deviations**2).mean())  # a noisy domain says less
        self.losses = o.losses / self.unit
        self._scale()

    def _scale(self) -> None:
        spread = self.weights @ (self.losses - self.losses.mean(axis=0)) ** 2
        self.scale = float(spread.sum()) or 1.0

    def of_domain(self, v: int) -> "_ScaleProblem":
        """The same with one validation domain."""
        one = copy.copy(self)
        one.losses, one.unit = self.losses[:, v : v + 1], self.unit[v : v + 1]
        one._scale()
        return one

    def fit(self, start: ScaleFit | None) -> ScaleFit:
        shrink = np.where(self.shrinks, 0.05, 0.0)
        if start is None:
            candidates = [np.array([a, b, *shrink]) for a, b in product(STARTS, STARTS)]
            theta = min(candidates, key=lambda theta: self.cost(theta)[0])
        else:
            theta = np.array(
                [
                    np.log(start.alpha[0]),
                    np.log(start.beta[0]),
                    *np.where(self.shrinks, [start.g[0], start.h[0]], 0.0),
                ]
            )
        shrinks = zip(BOUNDS[2:], self.shrinks, strict=True)
        bounds = [*BOUNDS[:2], *(bound if on else (0.0, 0.0) for bound, on in shrinks)]
        found = minimize(self.cost, theta, jac=True, method="L-BFGS-B", bounds=bounds)
        return self._result(found.x)

    def cost(self, theta: Array) -> tuple[float, Array]:
        """log(relative residual sum of squares) + prior, and its gradient.

        At the best linear coefficients the gradient is that of the model alone.
        """
        s, columns, coefficients, levels = self._solve(theta)
        spread = levels[self.mixture_of]
        residual = self.losses - columns @ coefficients - s[:, None] * spread
        weighted = self.weights[:, None] * residual
        total = float((weighted * residual).sum() + (levels**2).sum() / LEVEL_VARIANCE)
        slopes = np.array(
            [
                (weighted @ coefficients[1]) @ (columns[:, 1] * self.log_n) * np.exp(theta[0]),
                (weighted @ coefficients[2]) @ (columns[:, 2] * self.log_d) * np.exp(theta[1]),
                *((weighted * spread).sum(axis=1) * s @ np.stack([self.log_d, self.log_n], 1)),
            ]
        )
        relative = total / self.scale + EXACT
        from_usual = theta - np.array([USUAL, USUAL, 0, 0])
        return (
            float(np.log(relative) + PRIOR * from_usual @ from_usual),
            2 * slopes / self.scale / relative + 2 * PRIOR * from_usual,
        )

    def _solve(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """The mixture term's factor s (rows,), the columns 1, n^-α, d^-β (rows, 3), their
        coefficients (3, V), and the levels of the mixtures (m, V)."""
        alpha, beta = np.exp(theta[:2])
        s = np.exp(-theta[2] * self.log_d - theta[3] * self.log_n)
        size = np.exp(-alpha * self.log_n) if self.sizes else np.zeros_like(s)
        step = np.exp(-beta * self.log_d) if self.lengths else np.zeros_like(s)
        columns = np.column_stack([np.ones_like(s), size, step])
        ws = self.weights * s
        norm = self.member @ (ws * s) + 1 / LEVEL_VARIANCE
        x_levels = (self.member @ (ws[:, None] * columns)) / norm[:, None]
        y_levels = (self.member @ (ws[:, None] * self.losses)) / norm[:, None]
        x = self.weights[:, None] * (columns - s[:, None] * x_levels[self.mixture_of])
        coefficients = _non_negative(x.T @ columns, x.T @ self.losses)
        return s, columns, coefficients, y_levels - x_levels @ coefficients

    def _result(self, theta: Array) -> ScaleFit:
        _, _, coefficients, levels = self._solve(theta)
        constant, size, step = coefficients * self.unit
        alpha, beta, g, h = np.r_[np.exp(theta[:2]), theta[2:]][:, None] * np.ones(len(constant))
        return ScaleFit(
            self.n0, self.d0, alpha, beta, g, h, constant, size, step, levels * self.unit
        )


def _non_negative(gram: Array, right: Array) -> Array:
    """Least squares, (3, V), whose size and step coefficients (rows 1 and 2) are at least 0.

    The best feasible of the four choices of which of the two are zero.
    """
    ridge = 1e-12 * max(float(np.trace(gram)), 1e-30)
    best = np.zeros_like(right)
    best_gain = np.zeros(right.shape[1])
    for active in ([0], [0, 1], [0, 2], [0, 1, 2]):
        sub = gram[np.ix_(active, active)] + ridge * np.eye(len(active))
        found = np.zeros_like(right)
        found[active] = np.linalg.solve(sub, right[active])
        gain = 2 * (found * right).sum(axis=0) - (found * (gram @ found)).sum(axis=0)
        take = (gain > best_gain) & (found[1:] >= 0).all(axis=0)
        best[:, take], best_gain[take] = found[:, take], gain[take]
    return best


def fit_mixing(
    scales: Sequence[ScaleFit],
    mixtures: Array,
    power: float,
    ridges: Array,
    start: Exponentials | int = 1,
    counts: Array | None = None,
) -> tuple[list[JointLaw], Exponentials]:
    """Joint laws in one batch, one for each scale fit and its ridges (fits, V): exponentials of the
    mixture through each domain's levels.

    counts (fits, m): how often each mixture counts, for the bootstrap. Also the exponentials
    themselves, fit after fit, to start similar fits from.
    """
    levels = np.concatenate([s.levels.T for s in scales])
    domains = len(levels) // len(scales)
    w = np.ones_like(levels) if counts is None else np.repeat(counts, domains, axis=0)
    phi = features(mixtures, power)
    found = least_squares.exponentials(phi, levels, w, ridges.ravel(), start)
    laws = []
    for i, scale in enumerate(scales):
        e = found.part(slice(i * domains, (i + 1) * domains))
        shared = {f.name: getattr(scale, f.name) for f in fields(ScaleFit) if f.name != "levels"}
        laws.append(
            JointLaw(power=power, floor=e.floor, log_scale=e.log_scale, slope=e.slope, **shared)
        )
    return laws, found

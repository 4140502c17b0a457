"""How much better any mixture could be: a bound that certifies an optimum.

The losses of the mixing law are convex in φ(r). So the objective lies above its tangent plane at a
mixture r*: f(r) ≥ f(r*) + Σ_j g_j (φ(r_j) − φ(r*_j)), g = df/dφ. As φ is concave, a term with
g_j ≤ 0 lies above its own tangent in r_j, and one with g_j > 0 above its chord between the lowest
and the highest r_j. A pull is convex in r: its tangent is added. Minimising the resulting linear
function is a linear program; with φ(r) = r the difference to f(r*) is the Frank-Wolfe gap.
"""

import numpy as np
from scipy.optimize import linprog

from optimization.domain.feasible import Ball, Feasible
from optimization.domain.objective import Objective
from optimization.domain.predictor import Convex
from optimization.search.descent import descend

Array = np.ndarray

TEMPERATURES = np.logspace(-2, -6, 9)  # tried for the shares of the worst domains
WORTH = 1e-9  # nats per token: smaller improvements are not searched for
TOUCH = 1e-3  # lowest proportion, relative to the reference's, for the pull's tangent


def prove(objective: Objective, feasible: Feasible, best: Array) -> tuple[Array, float | None]:
    """The best mixture, (M,), and a lower bound of the objective, nats per token.

    In a trust region every ball that may hold a better mixture is searched. The bound is None
    if the objective is not known to be convex in φ(r): a law that is not exponential, a
    logarithmic φ of bundled domains, or the upper end of an interval. It is also None if the linear
    program has no solution.
    """
    if feasible.trust is None:
        return best, _bound(objective, feasible, best, None)
    least = float(objective(best[None])[0])
    bounds: list[float | None] = []
    for ball in feasible.balls:
        bound = _bound(objective, feasible, best, ball)
        if bound is None or bound < least - WORTH:
            candidate = descend(objective, feasible, ball.centre)
            bound = _bound(objective, feasible, candidate, ball)
            value = float(objective(candidate[None])[0])
            if value < least:
                best, least = candidate, value
        bounds.append(bound)
    known = [bound for bound in bounds if bound is not None]
    return best, min(known) if len(known) == len(bounds) else None


def _bound(objective: Objective, feasible: Feasible, at: Array, ball: Ball | None) -> float | None:
    surface, several = objective.surface, len(objective.offsets) > 1
    bundled = feasible.spread.shape[0] > feasible.spread.shape[1]
    if objective.risk is not None or not isinstance(surface, Convex):
        return None
    if bundled and not surface.power:
        return None
    temperatures = TEMPERATURES if several else (1.0,)
    planes = [_plane(objective, surface, feasible, at, t) for t in temperatures]
    bound = max(constant + _least(feasible, slopes, ball) for constant, slopes in planes)
    return bound if np.isfinite(bound) else None


def _plane(
    objective: Objective, surface: Convex, feasible: Feasible, at: Array, temperature: float
) -> tuple[float, Array]:
    """Constant and slopes (M',) of a linear function of the variables, below the objective."""
    low, high = feasible.lower, feasible.upper
    v = feasible.variables(at[None])[0]
    phi_low, phi_high, phi = surface.features(np.array([low, high, v]))
    shares = objective.shares(at, temperature)
    slopes = objective.sums @ shares @ surface.feature_jacobian(at[None])[0]
    slopes = slopes @ feasible.spread ** (surface.power or 1.0)  # φ(p v) = φ(p) φ(v)
    falls = slopes <= 0
    chord = (phi_high - phi_low) / np.where(high > low, high - low, 1.0)
    lines = slopes * np.where(falls, surface.feature_slopes(v[None])[0], chord)
    value = shares @ (surface.predict(at[None])[0] @ objective.sums - objective.offsets)
    value += slopes @ (np.where(falls, phi, phi_low) - phi) - lines @ np.where(falls, v, low)
    if objective.pull and objective.reference is not None:
        touched = np.maximum(at, TOUCH * objective.reference)
        slope = objective.pull_slope(touched)
        value += objective.pull_value(touched[None])[0] - slope @ touched
        lines = lines + feasible.spread.T @ slope
    return float(value), lines


def _least(feasible: Feasible, slopes: Array, ball: Ball | None) -> float:
    """The minimum of slopes · v over the allowed mixtures (in a ball if given); -inf: unknown."""
    matrix, limits = feasible.shared_rows() if ball is None else feasible.within_ball(ball)
    excess = matrix.shape[1] - len(slopes)
    total = np.concatenate([np.ones(len(slopes)), np.zeros(excess)])[None]
    box = [*zip(feasible.lower, feasible.upper, strict=True), *[(0.0, None)] * excess]
    cost = np.concatenate([slopes, np.zeros(excess)])
    solved = linprog(cost, A_ub=matrix, b_ub=limits, A_eq=total, b_eq=[1.0], bounds=box)
    return float(solved.fun) if solved.status == 0 else -np.inf

"""The solvers: Levenberg–Marquardt in batches, exponentials of a mixture, power laws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting.artifact.laws import lines

Array = np.ndarray

ITERATIONS = 100
TOLERANCE = 1e-6
MOST_ENTRIES = 2**22  # of the Hessians of the problems that are solved at once
LEVEL_RIDGE = 0.01  # of b, relative to that of t: keeps a nearly straight law from k → ∞
EXPONENTS = np.geomspace(0.02, 4, 48)
REFINEMENTS = 2
HUBER_ROUNDS = 8

# cost (p,), half its gradient (p, k) and the Gauss-Newton half of its Hessian (p, k, k), of sums of
# squares at parameters (p, k) of the problems `active` (p,)
Normal = tuple[Array, Array, Array]
NormalEquations = Callable[[Array, Array], Normal]


def normal_equations(residual: Array, jacobian: Array) -> Normal:
    """Of residuals (p, m) with this Jacobian (p, m, k)."""
    turned = jacobian.transpose(0, 2, 1)
    gradient = (turned @ residual[:, :, None])[:, :, 0]
    return (residual**2).sum(axis=1), gradient, turned @ jacobian


def levenberg_marquardt(
    equations: NormalEquations,
    start: Array,
    penalty: Array,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> tuple[Array, Array, Array]:
    """Minimise Σ residual² + Σ penalty θ² for P independent problems at once.

    start and penalty are (P, k). Each problem has its own damping and leaves the batch when a
    step lowers its cost by less than the relative tolerance. Returns parameters (P, k), costs
    (P,) and whether each converged (P,).
    """
    theta, final, converged = start.copy(), np.empty(len(start)), np.zeros(len(start), bool)
    active = np.arange(len(start))
    diagonal = np.arange(start.shape[1])

    def penalised(theta: Array, active: Array) -> Normal:
        cost, gradient, hessian = equations(theta, active)
        ridge = penalty[active]
        hessian[:, diagonal, diagonal] += ridge
        return cost + (ridge * theta**2).sum(axis=1), gradient + ridge * theta, hessian

    cost, gradient, hessian = penalised(theta, active)
    damping = np.full(len(start), 1e-2)
    for _ in range(iterations):
        damped = hessian.copy()
        damped[:, diagonal, diagonal] *= 1 + damping[:, None]
        damped[:, diagonal, diagonal] += 1e-12
        trial = theta[active] - np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
        new = penalised(trial, active)
        better = new[0] < cost
        done = (better & (cost - new[0] <= tolerance * cost)) | (damping > 1e9)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        theta[active[better]] = trial[better]
        if better.all():
            cost, gradient, hessian = new
        else:
            for now, then in zip((cost, gradient, hessian), new, strict=True):
                now[better] = then[better]
        if done.any():
            converged[active[done]], final[active[done]] = True, cost[done]
            left = ~done
            active, damping = active[left], damping[left]
            cost, gradient, hessian = cost[left], gradient[left], hessian[left]
            if not len(active):
                break
    final[active] = cost
    return theta, final, converged


@dataclass(frozen=True)
class Exponentials:
    """y ≈ floor + Σ_k exp(log_scale_k + slope_k·φ) for each of P problems."""

    floor: Array  # (P,)
    log_scale: Array  # (P, K)
    slope: Array  # (P, K, M)
    converged: Array  # (P,) bool

    def part(self, rows: slice | Array) -> "Exponentials":
        """Some of the problems, or all of them several times."""
        return Exponentials(
            self.floor[rows], self.log_scale[rows], self.slope[rows], self.converged[rows]
        )


def exponentials(
    phi: Array, y: Array, weights: Array, ridge: Array, start: Exponentials | int = 1
) -> Exponentials:
    """Fit P sums of K exponentials at once.

    phi (m, M) features, y (P, m) values, weights (P, m) ≥ 0 (0 leaves a row out), ridge (P,).
    Each minimises Σ w (residual/σ)² / Σw + ridge · Σ_k (|t_k|² + 0.01 (b_k − log σ)²), σ the
    weighted standard deviation of y: the ridge has no unit. `start` is the number of
    exponentials, or a fit of similar values to start from.
    """
    w = weights / weights.sum(axis=1, keepdims=True)
    mean = (w * y).sum(axis=1, keepdims=True)
    sigma = np.sqrt((w * (y - mean) ** 2).sum(axis=1, keepdims=True))
    sigma[sigma < 1e-12 * np.maximum(1.0, np.abs(mean))] = 1.0
    z, root = (y - mean) / sigma, np.sqrt(w)
    centre = phi.mean(axis=0)
    design = _Design(phi - centre)
    terms = start if isinstance(start, int) else start.log_scale.shape[1]
    of_term = np.r_[LEVEL_RIDGE, np.ones(design.width - 1)]
    penalty = ridge[:, None] * np.r_[0.0, np.tile(of_term, terms)]

    def solve(theta: Array, rows: Array) -> tuple[Array, Array, Array]:
        block = max(1, MOST_ENTRIES // theta.shape[1] ** 2)
        parts = [
            levenberg_marquardt(_equations(design, z[part], root[part]), first, penalty[part])
            for first, part in (
                (theta[i : i + block], rows[i : i + block]) for i in range(0, len(rows), block)
            )
        ]
        theta, cost, converged = (np.concatenate(one) for one in zip(*parts, strict=True))
        return theta, cost, converged

    def fresh(rows: Array) -> Array:
        one = _start(design, z[rows], w[rows], ridge[rows])
        return one if terms == 1 else _split(one, terms)

    every = np.arange(len(z))
    if isinstance(start, int):
        theta, _, converged = solve(fresh(every), every)
    else:
        theta, cost, converged = solve(_scaled(start, mean, sigma, centre), every)
        slow = np.flatnonzero(~converged)  # the start is far away in a flat valley
        if len(slow):
            again, lower, ended = solve(fresh(slow), slow)
            better = lower < cost[slow]
            theta[slow[better]], converged[slow[better]] = again[better], ended[better]
    by_term = theta[:, 1:].reshape(len(theta), terms, -1)
    slope = by_term[:, :, 1:]
    return Exponentials(
        floor=theta[:, 0] * sigma[:, 0] + mean[:, 0],
        log_scale=by_term[:, :, 0] + np.log(sigma) - slope @ centre,
        slope=slope,
        converged=converged,
    )


class _Design:
    """Straight lines through features, (1, x_i)·θ, of many problems at once.

    What a weighted sum of the outer products of (1, x_i) needs is made once: every problem and
    every step of a solver has its own weights.
    """

    def __init__(self, x: Array) -> None:
        self.rows = np.column_stack([np.ones(len(x)), x])  # (m, q)
        self.width = self.rows.shape[1]
        upper = np.triu_indices(self.width)
        self._products = self.rows[:, upper[0]] * self.rows[:, upper[1]]
        self._place = np.empty((self.width, self.width), int)  # of an entry in the upper triangle
        self._place[upper] = self._place.T[upper] = np.arange(len(upper[0]))

    def gram(self, weights: Array) -> Array:
        """Σ_i w_i (1, x_i) (1, x_i)ᵀ, (p, q, q), of weights (p, m)."""
        return np.take(weights @ self._products, self._place, axis=1)


def _equations(design: _Design, z: Array, root: Array) -> NormalEquations:
    """Of exponentials through values z with the roots of their weights, (p, m)."""

    def equations(theta: Array, active: Array) -> Normal:
        s, width = root[active], design.width
        residual = s * (theta[:, :1] - z[active])
        blocks = [slice(first, first + width) for first in range(1, theta.shape[1], width)]
        grown = []
        for block in blocks:
            grown.append(s * np.exp(np.clip(theta[:, block] @ design.rows.T, -50, 50)))
            residual += grown[-1]
        gradient = [(residual * s).sum(axis=1)[:, None]]
        hessian = np.empty((*theta.shape, theta.shape[1]))
        hessian[:, 0, 0] = (s**2).sum(axis=1)
        for i, (block, g) in enumerate(zip(blocks, grown, strict=True)):
            gradient.append((residual * g) @ design.rows)
            hessian[:, 0, block] = hessian[:, block, 0] = (s * g) @ design.rows
            for other, h in zip(blocks[: i + 1], grown, strict=False):
                hessian[:, block, other] = hessian[:, other, block] = design.gram(g * h)
        return (residual**2).sum(axis=1), np.concatenate(gradient, axis=1), hessian

    return equations


def _start(design: _Design, z: Array, w: Array, ridge: Array) -> Array:
    """A start from a straight line through log(z − c), with c half a range below the values."""
    kept = np.where(w > 0, z, np.nan)
    low, high = np.nanmin(kept, axis=1), np.nanmax(kept, axis=1)
    c = low - 0.5 * (high - low) - 1e-6
    log_z = np.log(np.maximum(z - c[:, None], 1e-9))
    normal, slopes = design.gram(w), range(1, design.width)
    normal[:, slopes, slopes] += ridge[:, None] + 1e-6
    line = np.linalg.solve(normal, ((w * log_z) @ design.rows)[:, :, None])[:, :, 0]
    return np.column_stack([c, line])


def _split(one: Array, terms: int) -> Array:
    """Parameters of several exponentials that together start where one stands, pulled apart."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(terms):
        part = one[:, 1:].copy()
        part[:, 0] -= np.log(terms)
        part[:, 1:] += rng.normal(0, 0.5, part.shape[1] - 1)
        parts.append(part)
    return np.column_stack([one[:, :1], *parts])


def _scaled(fit: Exponentials, mean: Array, sigma: Array, centre: Array) -> Array:
    """A fit as parameters of the centred and scaled problem."""
    log_scale = fit.log_scale + fit.slope @ centre - np.log(sigma)
    terms = np.concatenate([log_scale[:, :, None], fit.slope], axis=2)
    return np.column_stack([(fit.floor - mean[:, 0]) / sigma[:, 0], terms.reshape(len(mean), -1)])


@dataclass(frozen=True)
class PowerLaws:
    """y ≈ floor + scale · x^-exponent for each group and column; all (groups, V)."""

    exponent: Array
    floor: Array
    scale: Array  # at least 0


def power_laws(x: Array, y: Array, group: Array, tie: str, huber: float | None = None) -> PowerLaws:
    """Fit y (n, V) over x (n,) in each group (n,); x is relative to some scale.

    Exponents are tied over all groups and columns ("all"), over the groups of a column
    ("domain") or not ("curve"). Given them, floors and scales are straight lines (variable
    projection), so that the search is one-dimensional: a grid, then finer ones around the best.
    With `huber`, residuals beyond it (in y's unit) count linearly.
    """
    shape = (group.max() + 1, y.shape[1])
    weights = np.ones_like(y)
    log_x = np.log(x)
    for _ in range(HUBER_ROUNDS if huber else 1):
        centre = np.zeros(shape)
        grid = np.log(EXPONENTS)
        for _ in range(1 + REFINEMENTS):
            costs = np.stack(
                [_tied(_line_costs(log_x, y, group, centre + g, weights), tie) for g in grid]
            )
            centre = centre + grid[np.argmin(costs, axis=0)]
            centre = np.clip(centre, np.log(EXPONENTS[0]), np.log(EXPONENTS[-1]))
            grid = np.linspace(-1, 1, 9) * np.diff(grid).max()
        exponent = np.exp(centre)
        basis = np.exp(-exponent[group] * log_x[:, None])
        floor, scale = lines(basis, y, group, weights)
        residual = np.abs(y - floor[group] - scale[group] * basis)
        if huber:
            weights = np.minimum(1.0, huber / np.maximum(residual, 1e-300))
    return PowerLaws(exponent, floor, scale)


def _line_costs(log_x: Array, y: Array, group: Array, log_exponent: Array, weights: Array) -> Array:
    """Sum of squared residuals of each group and column, (groups, V)."""
    basis = np.exp(-np.exp(log_exponent)[group] * log_x[:, None])
    floor, scale = lines(basis, y, group, weights)
    squares = weights * (y - floor[group] - scale[group] * basis) ** 2
    costs: Array = np.zeros(log_exponent.shape)
    np.add.at(costs, group, squares)
    return costs


def _tied(costs: Array, tie: str) -> Array:
    """Costs summed over what shares an exponent, (groups, V)."""
    if tie == "curve":
        return costs
    summed = costs.sum(axis=0, keepdims=True) if tie == "domain" else costs.sum(keepdims=True)
    return np.broadcast_to(summed, costs.shape)

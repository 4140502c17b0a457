"""The solvers: Levenberg–Marquardt in batches, exponentials of a mixture, power laws."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting.artifact.laws import lines

Array = np.ndarray

ITERATIONS = 100
TOLERANCE = 1e-6
LEVEL_RIDGE = 0.01  # of b, relative to that of t: keeps a nearly straight law from k → ∞
EXPONENTS = np.geomspace(0.02, 4, 48)
REFINEMENTS = 2
HUBER_ROUNDS = 8

# residuals (p, m) and their Jacobian (p, m, k) at parameters (p, k) of the problems `active` (p,)
Linearise = Callable[[Array, Array], tuple[Array, Array]]


def levenberg_marquardt(
    linearise: Linearise, start: Array, penalty: Array, tolerance: float = TOLERANCE
) -> tuple[Array, Array, Array]:
    """Minimise Σ residual² + Σ penalty θ² for P independent problems at once.

    start and penalty are (P, k). Each problem has its own damping and leaves the batch when a
    step lowers its cost by less than the relative tolerance. Returns parameters (P, k), costs
    (P,) and whether each converged (P,).
    """
    theta, final, converged = start.copy(), np.empty(len(start)), np.zeros(len(start), bool)
    active = np.arange(len(start))
    residual, jacobian = linearise(theta, active)
    cost = (residual**2).sum(axis=1) + (penalty * theta**2).sum(axis=1)
    damping = np.full(len(start), 1e-2)
    diagonal = np.arange(start.shape[1])
    for _ in range(ITERATIONS):
        here, ridge = theta[active], penalty[active]
        turned = jacobian.transpose(0, 2, 1)
        gradient = (turned @ residual[:, :, None])[:, :, 0] + ridge * here
        hessian = turned @ jacobian
        curvature = hessian[:, diagonal, diagonal] + ridge
        hessian[:, diagonal, diagonal] = curvature * (1 + damping[:, None]) + 1e-12
        trial = here - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        new_residual, new_jacobian = linearise(trial, active)
        new_cost = (new_residual**2).sum(axis=1) + (ridge * trial**2).sum(axis=1)
        better = new_cost < cost
        done = (better & (cost - new_cost <= tolerance * cost)) | (damping > 1e9)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        theta[active[better]], cost[better] = trial[better], new_cost[better]
        if better.all():
            residual, jacobian = new_residual, new_jacobian
        else:
            residual[better], jacobian[better] = new_residual[better], new_jacobian[better]
        if done.any():
            converged[active[done]], final[active[done]] = True, cost[done]
            left = ~done
            active, cost, damping = active[left], cost[left], damping[left]
            residual, jacobian = residual[left], jacobian[left]
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
    x = phi - centre
    if isinstance(start, int):
        first = _start(x, z, w, ridge)
        theta = first if start == 1 else _split(first, start)
    else:
        theta = _scaled(start, mean, sigma, centre)
    terms = (theta.shape[1] - 1) // (1 + x.shape[1])
    penalty = ridge[:, None] * np.r_[0.0, np.tile(np.r_[LEVEL_RIDGE, np.ones(x.shape[1])], terms)]

    def linearise(theta: Array, active: Array) -> tuple[Array, Array]:
        s = root[active]
        residual = s * (theta[:, :1] - z[active])
        jacobian = np.empty((*s.shape, theta.shape[1]))
        jacobian[:, :, 0] = s
        for first in range(1, theta.shape[1], 1 + x.shape[1]):
            last = first + 1 + x.shape[1]
            exponent = theta[:, first : first + 1] + theta[:, first + 1 : last] @ x.T
            grown = s * np.exp(np.clip(exponent, -50, 50))
            residual += grown
            jacobian[:, :, first] = grown
            np.multiply(grown[:, :, None], x, out=jacobian[:, :, first + 1 : last])
        return residual, jacobian

    theta, _, converged = levenberg_marquardt(linearise, theta, penalty)
    by_term = theta[:, 1:].reshape(len(theta), terms, -1)
    slope = by_term[:, :, 1:]
    return Exponentials(
        floor=theta[:, 0] * sigma[:, 0] + mean[:, 0],
        log_scale=by_term[:, :, 0] + np.log(sigma) - slope @ centre,
        slope=slope,
        converged=converged,
    )


def _start(x: Array, z: Array, w: Array, ridge: Array) -> Array:
    """A start from a straight line through log(z − c), with c half a range below the values."""
    kept = np.where(w > 0, z, np.nan)
    low, high = np.nanmin(kept, axis=1), np.nanmax(kept, axis=1)
    c = low - 0.5 * (high - low) - 1e-6
    log_z = np.log(np.maximum(z - c[:, None], 1e-9))
    design = np.column_stack([np.ones(len(x)), x])
    normal = np.einsum("pm,mk,ml->pkl", w, design, design, optimize=True)
    normal[:, range(1, design.shape[1]), range(1, design.shape[1])] += ridge[:, None] + 1e-6
    right = (w * log_z) @ design
    line = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
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

"""The solvers: exponentials of a mixture in batches, and power laws with a shared exponent."""

from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import minimize_scalar

from fitting.laws import lines

Array = np.ndarray

ITERATIONS = 80
EXPONENTS = np.geomspace(0.02, 4, 60)
LEVEL_RIDGE = 0.01  # of b, relative to that of t: keeps a nearly straight law from k → ∞


@dataclass(frozen=True)
class Exponentials:
    """y ≈ floor + exp(log_scale + slope·φ) for each of P problems."""

    floor: Array  # (P,)
    log_scale: Array  # (P,)
    slope: Array  # (P, M)
    converged: Array  # (P,) bool


def exponentials_by_ridge(phi: Array, y: Array, ridges: Array) -> list[Exponentials]:
    """Fit the same P problems with each ridge, all in one batch; a result a ridge.

    phi (m, M), y (P, m), ridges (k,).
    """
    problems, k = len(y), len(ridges)
    stacked = np.tile(y, (k, 1))
    found = exponentials(phi, stacked, np.ones_like(stacked), np.repeat(ridges, problems))
    parts = [slice(i * problems, (i + 1) * problems) for i in range(k)]
    return [
        Exponentials(*(getattr(found, f.name)[part] for f in fields(Exponentials)))
        for part in parts
    ]


def exponentials(phi: Array, y: Array, weights: Array, ridge: Array) -> Exponentials:
    """Fit P exponentials at once by Levenberg–Marquardt with an analytic Jacobian.

    phi (m, M) features, y (P, m) values, weights (P, m) ≥ 0 (0 leaves a row out), ridge (P,).
    Each minimises Σ w (residual/σ)² / Σw + ridge · (|t|² + 0.01 (b − log σ)²), σ the weighted
    standard deviation of y: the ridge has no unit.
    """
    total = weights.sum(axis=1, keepdims=True)
    w = weights / total
    mean = (w * y).sum(axis=1, keepdims=True)
    sigma = np.sqrt((w * (y - mean) ** 2).sum(axis=1, keepdims=True))
    sigma[sigma == 0] = 1.0
    z = (y - mean) / sigma
    centre = phi.mean(axis=0)
    x = phi - centre
    problems, columns = len(y), x.shape[1] + 2
    penalty = ridge[:, None] * np.r_[0.0, LEVEL_RIDGE, np.ones(x.shape[1])]

    theta = _start(x, z, w, ridge)
    damping = np.full(problems, 1e-2)
    cost, residual, jacobian = _linearise(theta, x, z, w, penalty)
    converged = np.zeros(problems, bool)
    for _ in range(ITERATIONS):
        gradient = np.einsum("pmk,pm->pk", jacobian, residual) + penalty * theta
        hessian = np.einsum("pmk,pml->pkl", jacobian, jacobian)
        diagonal = np.einsum("pkk->pk", hessian) + penalty
        hessian[:, range(columns), range(columns)] = diagonal * (1 + damping[:, None]) + 1e-12
        trial = theta - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        new_cost, new_residual, new_jacobian = _linearise(trial, x, z, w, penalty)
        better = new_cost < cost
        converged |= better & (cost - new_cost <= 1e-10 * cost) | (damping > 1e9)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        theta[better], cost[better] = trial[better], new_cost[better]
        residual[better], jacobian[better] = new_residual[better], new_jacobian[better]
        if converged.all():
            break
    log_scale = theta[:, 1] + np.log(sigma[:, 0]) - theta[:, 2:] @ centre
    floor = theta[:, 0] * sigma[:, 0] + mean[:, 0]
    return Exponentials(floor, log_scale, theta[:, 2:], converged)


def _linearise(
    theta: Array, x: Array, z: Array, w: Array, penalty: Array
) -> tuple[Array, Array, Array]:
    """Cost (P,), weighted residuals (P, m) and their Jacobian (P, m, 2 + M) in (c, b, t)."""
    root = np.sqrt(w)
    grown = np.exp(np.clip(theta[:, 1:2] + theta[:, 2:] @ x.T, -50, 50))
    residual = root * (theta[:, :1] + grown - z)
    jacobian = np.empty((*residual.shape, theta.shape[1]))
    jacobian[:, :, 0] = root
    jacobian[:, :, 1] = root * grown
    jacobian[:, :, 2:] = jacobian[:, :, 1:2] * x
    cost = (residual**2).sum(axis=1) + (penalty * theta**2).sum(axis=1)
    return cost, residual, jacobian


def _start(x: Array, z: Array, w: Array, ridge: Array) -> Array:
    """A start from a straight line through log(z − c), with c half a range below the values."""
    kept = np.where(w > 0, z, np.nan)
    low, high = np.nanmin(kept, axis=1), np.nanmax(kept, axis=1)
    c = low - 0.5 * (high - low) - 1e-6
    log_z = np.log(np.maximum(z - c[:, None], 1e-9))
    design = np.column_stack([np.ones(len(x)), x])
    normal = np.einsum("pm,mk,ml->pkl", w, design, design)
    normal[:, range(1, design.shape[1]), range(1, design.shape[1])] += ridge[:, None] + 1e-6
    right = np.einsum("pm,mk,pm->pk", w, design, log_z)
    line = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
    return np.column_stack([c, line])


@dataclass(frozen=True)
class TiedPowerLaw:
    """y ≈ floor_g + scale_g · x^-exponent, the exponent shared by all groups g."""

    exponent: float
    floor: Array  # (groups,)
    scale: Array  # (groups,), at least 0


def tied_power_law(x: Array, y: Array, group: Array) -> TiedPowerLaw:
    """Fit a power law with one exponent to all groups; x, y, group (n,), x relative to a scale.

    Given the exponent, floors and scales are straight lines (variable projection), so that the
    search is one-dimensional.
    """

    def cost(log_exponent: float) -> float:
        power = x ** -np.exp(log_exponent)
        floor, scale = lines(power, y, group)
        return float(((y - floor[group] - scale[group] * power) ** 2).sum())

    logs = np.log(EXPONENTS)
    best = int(np.argmin([cost(e) for e in logs]))
    bracket = logs[max(0, best - 1)], logs[min(len(logs) - 1, best + 1)]
    exponent = float(np.exp(minimize_scalar(cost, bounds=bracket, method="bounded").x))
    return TiedPowerLaw(exponent, *lines(x**-exponent, y, group))

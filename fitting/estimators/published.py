"""Fit other published laws, to compare with and for the user to choose.

Each is fitted by Levenberg–Marquardt with an analytic Jacobian from one start, the scale terms of
the joint law; its ridge holds the parameters near that start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting.artifact.laws import BIMIX_EPSILON, AdditiveLaw, BiMixLaw, Law, PowerSumLaw
from fitting.data.observations import Observations
from fitting.estimators import joint, least_squares
from training.record.errors import InputError

Array = np.ndarray

TINY = 1e-3  # the least coefficient to start from: its logarithm is fitted
START_POWER = 0.5
RIDGE = 1e-4
TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Rows:
    """What every form is written in: features of the rows, and where to start."""

    mixtures: Array  # (n, M)
    log_r: Array  # log of the proportions, 0 where they are 0, (n, M)
    log_n: Array  # (n,)
    log_d: Array  # (n,)
    sizes: float  # 1 where sizes differ, else 0: no size term
    lengths: float
    scales: joint.ScaleFit
    sigma: Array  # spread of the mixtures' levels, (V,)
    own: Array  # the training domain of each validation domain's name, (V,)


# value (p, n) and Jacobian (p, n, k) at parameters (p, k)
Form = Callable[[_Rows, Array, Array], tuple[Array, Array]]


def fit(
    observations: Observations,
    method: str,
    ridge: float,
    start: Array | None = None,
    counts: Array | None = None,
) -> tuple[Law, Array]:
    """The law of one of METHODS, and its parameters (V, k), where a similar fit may start.

    counts (m,): how often each mixture counts, for the bootstrap. Raises InputError where a law
    does not apply to these domains.
    """
    o, rows = observations, _rows(observations, method)
    form, first, law = METHODS[method]
    centre = first(rows)  # (V, k)
    weight = np.ones(len(o.losses)) if counts is None else counts[o.mixture_of]
    root = np.sqrt(weight / weight.sum()) / o.losses.std(axis=0).clip(1e-9)[:, None]

    def linearise(moved: Array, active: Array) -> tuple[Array, Array]:
        value, jacobian = form(rows, moved + centre[active], active)
        residual = (value - o.losses.T[active]) * root[active]
        jacobian *= root[active][:, :, None]
        return residual, jacobian

    begin = np.zeros_like(centre) if start is None else start - centre
    penalty = np.full(centre.shape, ridge)
    moved, _, _ = least_squares.levenberg_marquardt(linearise, begin, penalty, TOLERANCE)
    return law(rows, moved + centre), moved + centre


def _rows(observations: Observations, method: str) -> _Rows:
    o = observations
    scales = joint.fit_scales(o, shrinking=False)
    own = [o.domains.index(d) if d in o.domains else -1 for d in o.val_domains]
    if method == "bimix" and -1 in own:
        missing = o.val_domains[own.index(-1)]
        raise InputError(f"bimix: validation domain {missing!r} is no training domain")
    mixtures = o.proportions()
    return _Rows(
        mixtures=mixtures,
        log_r=np.log(np.where(mixtures > 0, mixtures, 1.0)),
        log_n=np.log(o.n_params / scales.n0),
        log_d=np.log(o.tokens / scales.d0),
        sizes=float(np.ptp(o.n_params) > 0),
        lengths=float(np.ptp(o.tokens) > 0),
        scales=scales,
        sigma=scales.levels.std(axis=0).clip(TINY),
        own=np.array(own),
    )


def _scale_start(rows: _Rows) -> Array:
    """log A, log α, log B, log β of the joint law, (V, 4)."""
    s = rows.scales
    return np.log(np.stack([s.size.clip(TINY), s.alpha, s.step.clip(TINY), s.beta], axis=1))


def _scale_terms(rows: _Rows, theta: Array) -> tuple[Array, Array]:
    """A n^-α + B d^-β at (log A, log α, log B, log β): value (p, n), Jacobian (p, n, 4)."""
    size = rows.sizes * np.exp(theta[:, :1] - np.exp(theta[:, 1:2]) * rows.log_n)
    step = rows.lengths * np.exp(theta[:, 2:3] - np.exp(theta[:, 3:4]) * rows.log_d)
    slopes = [
        size,
        -size * np.exp(theta[:, 1:2]) * rows.log_n,
        step,
        -step * np.exp(theta[:, 3:4]) * rows.log_d,
    ]
    return size + step, np.stack(slopes, axis=2)


def _powers(rows: _Rows, power: Array) -> Array:
    """r_j^power_j, 0 where r_j is 0, for powers (p, M): (p, n, M)."""
    return np.exp(power[:, None] * rows.log_r) * (rows.mixtures > 0)


def _power_sum(rows: _Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = b, W (M), log a, scale terms (4)."""
    m = rows.mixtures.shape[1]
    weight, power = theta[:, 1 : m + 1], np.exp(theta[:, m + 1 : m + 2])
    powers = _powers(rows, np.tile(power, m))
    scale, scale_slopes = _scale_terms(rows, theta[:, m + 2 :])
    value = theta[:, :1] + (powers @ weight[:, :, None])[:, :, 0] + scale
    by_power = (powers * rows.log_r) @ (weight * power)[:, :, None]
    return value, np.concatenate([np.ones_like(by_power), powers, by_power, scale_slopes], axis=2)


def _power_sum_start(rows: _Rows) -> Array:
    s, m = rows.scales, rows.mixtures.shape[1]
    zeros = np.zeros((len(s.constant), m))
    power = np.full((len(zeros), 1), np.log(START_POWER))
    return np.hstack([s.constant[:, None], zeros, power, _scale_start(rows)])


def _power_sum_law(rows: _Rows, theta: Array) -> Law:
    m, s = rows.mixtures.shape[1], rows.scales
    size, alpha, step, beta = np.exp(theta[:, m + 2 :]).T
    return PowerSumLaw(
        n0=s.n0,
        d0=s.d0,
        floor=theta[:, 0],
        weight=theta[:, 1 : m + 1],
        power=np.exp(theta[:, m + 1]),
        size=size * rows.sizes,
        alpha=alpha,
        step=step * rows.lengths,
        beta=beta,
    )


def _bimix(rows: _Rows, theta: Array, active: Array) -> tuple[Array, Array]:
    """θ = log p, C, scale terms (4)."""
    own = np.log(rows.mixtures[:, rows.own[active]] + BIMIX_EPSILON).T  # (p, n)
    power = np.exp(theta[:, :1])
    factor = np.exp(-power * own)
    scale, slopes = _scale_terms(rows, theta[:, 2:])
    value = factor * (theta[:, 1:2] + scale)
    by_power = -value * power * own
    jacobian = [by_power[:, :, None], factor[:, :, None], factor[:, :, None] * slopes]
    return value, np.concatenate(jacobian, axis=2)


def _bimix_start(rows: _Rows) -> Array:
    s = rows.scales
    power = np.full(len(s.constant), np.log(0.05))
    return np.hstack([np.stack([power, s.constant], axis=1), _scale_start(rows)])


def _bimix_law(rows: _Rows, theta: Array) -> Law:
    s = rows.scales
    size, alpha, step, beta = np.exp(theta[:, 2:]).T
    return BiMixLaw(
        n0=s.n0,
        d0=s.d0,
        own=rows.own.astype(float),
        power=np.exp(theta[:, 0]),
        floor=theta[:, 1],
        size=size * rows.sizes,
        alpha=alpha,
        step=step * rows.lengths,
        beta=beta,
    )


def _inverse_sum(rows: _Rows, theta: Array) -> tuple[Array, Array]:
    """1 / Σ_j C_j r_j^γ_j at (log C (M), log γ (M)): value (p, n), Jacobian (p, n, 2M)."""
    m = rows.mixtures.shape[1]
    weight, power = np.exp(theta[:, :m]), np.exp(theta[:, m:])
    parts = weight[:, None] * _powers(rows, power)
    value = 1 / np.maximum(parts.sum(axis=2), 1e-12)
    by_weight = -(value**2)[:, :, None] * parts
    return value, np.concatenate([by_weight, by_weight * rows.log_r * power[:, None]], axis=2)


def _inverse_sum_start(rows: _Rows) -> Array:
    """E and the inverse sum, which is a spread of the mixtures at the uniform one, (V, 1 + 2M)."""
    m = rows.mixtures.shape[1]
    weight = -np.log(rows.sigma * m ** (1 - START_POWER))
    floor = rows.scales.constant - rows.sigma
    parts = [np.tile(weight[:, None], m), np.full((len(weight), m), np.log(START_POWER))]
    return np.hstack([floor[:, None], *parts])


def _additive(rows: _Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = E, log C (M), log γ (M), scale terms (4)."""
    m = rows.mixtures.shape[1]
    inverse, slopes = _inverse_sum(rows, theta[:, 1 : 2 * m + 1])
    scale, scale_slopes = _scale_terms(rows, theta[:, 2 * m + 1 :])
    ones = np.ones((*inverse.shape, 1))
    value = theta[:, :1] + inverse + scale
    return value, np.concatenate([ones, slopes, scale_slopes], axis=2)


def _additive_start(rows: _Rows) -> Array:
    return np.hstack([_inverse_sum_start(rows), _scale_start(rows)])


def _additive_law(rows: _Rows, theta: Array) -> Law:
    return _shukor_joint_law(rows, _as_joint(rows, theta))


def _as_joint(rows: _Rows, theta: Array) -> Array:
    """Parameters of the additive form as those of the joint one: equal a and b, powers of 1."""
    m = rows.mixtures.shape[1]
    scale, ones = theta[:, 2 * m + 1 :], np.ones((len(theta), 1))
    size = [np.tile(scale[:, :1], m), ones, scale[:, 1:2]]
    step = [np.tile(scale[:, 2:3], m), ones, scale[:, 3:4]]
    return np.hstack([theta[:, : 2 * m + 1], *size, *step])


def _mixed_scale(rows: _Rows, theta: Array, log_scale: Array, exists: float) -> tuple[Array, Array]:
    """(Σ_j a_j r_j)^κ n^-α at (log a (M), κ, log α): value (p, n), Jacobian (p, n, M + 2)."""
    m = rows.mixtures.shape[1]
    parts = np.exp(theta[:, None, :m]) * rows.mixtures
    total = np.maximum(parts.sum(axis=2), 1e-12)
    kappa, exponent = theta[:, m : m + 1], np.exp(theta[:, m + 1 :])
    with np.errstate(over="ignore"):  # a step too far, which the solver takes back
        value = exists * np.exp(kappa * np.log(total) - exponent * log_scale)
    by_part = (value * kappa / total)[:, :, None] * parts
    rest = np.stack([value * np.log(total), -value * exponent * log_scale], axis=2)
    return value, np.concatenate([by_part, rest], axis=2)


def _shukor_joint(rows: _Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = E, log C (M), log γ (M), and for size and step log a (M), κ, log α."""
    m = rows.mixtures.shape[1]
    inverse, slopes = _inverse_sum(rows, theta[:, 1 : 2 * m + 1])
    middle = 3 * m + 3
    size, by_size = _mixed_scale(rows, theta[:, 2 * m + 1 : middle], rows.log_n, rows.sizes)
    step, by_step = _mixed_scale(rows, theta[:, middle:], rows.log_d, rows.lengths)
    ones = np.ones((*inverse.shape, 1))
    value = theta[:, :1] + inverse + size + step
    return value, np.concatenate([ones, slopes, by_size, by_step], axis=2)


def _shukor_joint_start(rows: _Rows) -> Array:
    return _as_joint(rows, _additive_start(rows))


def _shukor_joint_law(rows: _Rows, theta: Array) -> Law:
    m = rows.mixtures.shape[1]
    middle = 3 * m + 3
    size, step = theta[:, 2 * m + 1 : middle], theta[:, middle:]
    return AdditiveLaw(
        n0=rows.scales.n0,
        d0=rows.scales.d0,
        floor=theta[:, 0],
        weight=np.exp(theta[:, 1 : m + 1]),
        power=np.exp(theta[:, m + 1 : 2 * m + 1]),
        size=np.exp(size[:, :m]) * rows.sizes,
        size_power=size[:, m],
        alpha=np.exp(size[:, m + 1]),
        step=np.exp(step[:, :m]) * rows.lengths,
        step_power=step[:, m],
        beta=np.exp(step[:, m + 1]),
    )


METHODS: dict[str, tuple[Form, Callable[[_Rows], Array], Callable[[_Rows, Array], Law]]] = {
    "bimix": (_bimix, _bimix_start, _bimix_law),
    "shukor_additive": (_additive, _additive_start, _additive_law),
    "shukor_joint": (_shukor_joint, _shukor_joint_start, _shukor_joint_law),
    "power_sum": (_power_sum, _power_sum_start, _power_sum_law),
}

"""Fit other published laws, to compare with and for the user to choose.

Each is fitted by Levenberg–Marquardt with an analytic Jacobian. Its scale terms start at those of
the joint law, and its ridge holds the parameters near a neutral mixing law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fitting.artifact.laws import BIMIX_EPSILON, AdditiveLaw, BiMixLaw, Law, PowerSumLaw
from fitting.data.observations import Observations
from fitting.estimators import least_squares
from fitting.estimators.joint import ScaleFit
from training.record.errors import InputError

Array = np.ndarray

TINY = 1e-3  # the least coefficient to start from, relative: its logarithm is fitted
START_POWER = 0.5
BEGIN_POWERS = (0.25, 0.5, 1.0)
MOST = 10.0  # times the largest value, that an inverse sum counts as
BELOW = 0.5  # of the range of the values, by which an inverse sum begins below them
FIRST_RIDGE, FIRST_STEPS = 1e-4, 25  # of a first fit, which tells no more than a mean
ALIKE = 3.0  # times the ridge, that holds the powers of an inverse sum to their mean
TOLERANCE = 1e-4
MOST_STEPS = 10  # of a draw of the bootstrap …
MOST_WORK = 1e9  # … and multiplications of all its draws in a step; fewer steps where it is more
MOST_ENTRIES = 2**17  # of the Jacobians of the problems that are solved at once: a cache holds them


@dataclass(frozen=True)
class Rows:
    """What every form is written in: features of the rows, and where to start."""

    distinct: Array  # mixtures, (m, M)
    mixtures: Array  # of the rows, (n, M)
    log_r: Array  # log of the proportions, 0 where they are 0, (n, M)
    log_n: Array  # (n,)
    log_d: Array  # (n,)
    sizes: float  # 1 where sizes differ, else 0: no size term
    lengths: float
    scales: ScaleFit
    sigma: Array  # spread of the mixtures' levels, (V,)
    spread: Array  # of the losses, (V,)
    own: Array  # the training domain of each validation domain's name, (V,)


# value (p, n) and Jacobian (p, n, k) at parameters (p, k)
Form = Callable[[Rows, Array, Array], tuple[Array, Array]]


def begin(observations: Observations, method: str, scales: ScaleFit) -> Array:
    """Parameters, (V, k), which the fits of one of METHODS begin with: of an inverse sum a first
    fit.

    `scales` are the joint law's scale terms, near which the ridge holds those of the law. Raises
    InputError where a law does not apply to these domains.
    """
    rows = rows_of(observations, method, scales)
    centre = METHODS[method][1](rows)
    if method not in INVERSE_SUMS:
        return centre
    start = _linear_start(rows, centre)
    penalty = np.full_like(centre, FIRST_RIDGE)
    losses = observations.losses
    return _solve(rows, losses, method, penalty, centre, start, iterations=FIRST_STEPS)[0]


def fit(
    observations: Observations,
    method: str,
    ridges: Sequence[float],
    scales: ScaleFit,
    first: Array,
    start: Array,
) -> tuple[Law, Array]:
    """The law of one of METHODS with the ridge of each validation domain, and its parameters (V,
    k); `first` is what `begin` found of these observations or of more, `start` a similar fit's."""
    rows = rows_of(observations, method, scales)
    centre, penalty = _prior(rows, method, ridges, first)
    parameters = _solve(rows, observations.losses, method, penalty, centre, start)[0]
    return METHODS[method][2](rows, parameters), parameters


def bootstrap(
    observations: Observations,
    method: str,
    ridges: Sequence[float],
    scales: ScaleFit,
    counts: Array,
    first: Array,
    start: Array,
) -> list[Law]:
    """The laws on mixtures drawn with replacement, a few steps from `start`, that of all.

    counts (draws, m): how often each draw took each mixture. Large fits take fewer steps, at least
    one: a draw that lacks steps differs less from the fit to all than it would.
    """
    rows, losses = rows_of(observations, method, scales), observations.losses
    shares = counts / (counts @ np.bincount(observations.mixture_of))[:, None]
    work = len(counts) * losses.size * start.shape[1] ** 2  # multiplications of a step
    steps = int(np.clip(MOST_WORK / work, 1, MOST_STEPS))
    shares = shares[:, observations.mixture_of]
    centre, penalty = _prior(rows, method, ridges, first)
    solved = _solve(rows, losses, method, penalty, centre, start, shares, steps)
    return [METHODS[method][2](rows, parameters) for parameters in solved]


def _solve(
    rows: Rows,
    losses: Array,
    method: str,
    penalty: Array,
    centre: Array,
    start: Array,
    shares: Array | None = None,
    iterations: int = least_squares.ITERATIONS,
) -> Array:
    """Parameters, (B, V, k), for B ways to share the weight over the rows, (B, n), by default one:
    equally.

    The penalty (V, k) holds them to the centre (V, k), those in the unit of the losses relative to
    the losses' range.
    """
    form, domains = METHODS[method][0], losses.shape[1]
    shares = np.full((1, len(losses)), 1 / len(losses)) if shares is None else shares
    domain = np.tile(np.arange(domains), len(shares))  # of each problem
    weight = np.repeat(np.arange(len(shares)), domains)
    sigma, root = rows.spread, np.sqrt(shares)
    unit = UNITS[method](rows.mixtures.shape[1])
    penalty = penalty / np.where(unit, np.ptp(losses, axis=0).clip(1e-9)[:, None], 1.0) ** 2

    def equations(moved: Array, active: Array) -> least_squares.Normal:
        own = domain[active]
        value, jacobian = form(rows, moved + centre[own], own)
        scale = root[weight[active]] / sigma[own][:, None]
        residual = (value - losses.T[own]) * scale
        jacobian *= scale[:, :, None]
        return least_squares.normal_equations(residual, jacobian)

    found = np.empty((len(domain), centre.shape[1]))
    block = max(1, MOST_ENTRIES // (len(losses) * centre.shape[1]))
    for i in range(0, len(domain), block):
        own = domain[i : i + block]

        def part(moved: Array, active: Array, first: int = i) -> least_squares.Normal:
            return equations(moved, active + first)

        found[i : i + block] = (
            centre[own]
            + least_squares.levenberg_marquardt(
                part, (start - centre)[own], penalty[own], TOLERANCE, iterations
            )[0]
        )
    return found.reshape(len(shares), domains, -1)


def _prior(rows: Rows, method: str, ridges: Sequence[float], first: Array) -> tuple[Array, Array]:
    """What the parameters are held to, and how strongly, both (V, k).

    The powers γ of an inverse sum are much alike: they are held to the mean of log γ over all
    domains of a first fit, and more strongly than the rest. Empirical Bayes: C. Morris, "Parametric
    Empirical Bayes Inference", Journal of the American Statistical Association 78, 1983.
    """
    centre = METHODS[method][1](rows)
    penalty = np.ones_like(centre) * np.array(ridges)[:, None]
    if method in INVERSE_SUMS:
        m = rows.mixtures.shape[1]
        powers = slice(m + 1, 2 * m + 1)
        centre[:, powers] = first[:, powers].mean()
        penalty[:, powers] *= ALIKE
    return centre, penalty


def rows_of(observations: Observations, method: str, scales: ScaleFit) -> Rows:
    """Features of the observations, and where a form starts; InputError for `bimix` where a
    validation domain is not a training domain."""
    o = observations
    own = [o.domains.index(d) if d in o.domains else -1 for d in o.val_domains]
    if method == "bimix" and -1 in own:
        missing = o.val_domains[own.index(-1)]
        raise InputError(f"bimix: validation domain {missing!r} is not a training domain")
    mixtures, spread = o.proportions(), o.losses.std(axis=0).clip(1e-9)
    return Rows(
        distinct=o.mixtures,
        mixtures=mixtures,
        log_r=np.log(np.where(mixtures > 0, mixtures, 1.0)),
        log_n=np.log(o.n_params / scales.n0),
        log_d=np.log(o.tokens / scales.d0),
        sizes=float(np.ptp(o.n_params) > 0),
        lengths=float(np.ptp(o.tokens) > 0),
        scales=scales,
        sigma=np.maximum(scales.levels.std(axis=0), TINY * spread),
        spread=spread,
        own=np.array(own),
    )


def _scale_centre(rows: Rows) -> Array:
    """log A, log α, log B, log β of the joint law, (V, 4)."""
    s, least = rows.scales, TINY * rows.spread
    size, step = np.maximum(s.size, least), np.maximum(s.step, least)
    return np.log(np.stack([size, s.alpha, step, s.beta], axis=1))


def _scale_terms(rows: Rows, theta: Array) -> tuple[Array, Array]:
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


def _powers(rows: Rows, power: Array) -> Array:
    """r_j^power_j, 0 where r_j is 0, for powers (p, M): (p, n, M)."""
    return np.exp(power[:, None] * rows.log_r) * (rows.mixtures > 0)


def _power_sum(rows: Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = b, W (M), log a, scale terms (4)."""
    m = rows.mixtures.shape[1]
    weight, power = theta[:, 1 : m + 1], np.exp(theta[:, m + 1 : m + 2])
    powers = _powers(rows, np.tile(power, m))
    scale, scale_slopes = _scale_terms(rows, theta[:, m + 2 :])
    value = theta[:, :1] + (powers @ weight[:, :, None])[:, :, 0] + scale
    by_power = (powers * rows.log_r) @ (weight * power)[:, :, None]
    return value, np.concatenate([np.ones_like(by_power), powers, by_power, scale_slopes], axis=2)


def _power_sum_centre(rows: Rows) -> Array:
    s, m = rows.scales, rows.mixtures.shape[1]
    zeros = np.zeros((len(s.constant), m))
    power = np.full((len(zeros), 1), np.log(START_POWER))
    return np.hstack([s.constant[:, None], zeros, power, _scale_centre(rows)])


def _power_sum_law(rows: Rows, theta: Array) -> Law:
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


def _bimix(rows: Rows, theta: Array, active: Array) -> tuple[Array, Array]:
    """θ = log p, C, scale terms (4)."""
    own = np.log(rows.mixtures[:, rows.own[active]] + BIMIX_EPSILON).T  # (p, n)
    power = np.exp(theta[:, :1])
    factor = np.exp(-power * own)
    scale, slopes = _scale_terms(rows, theta[:, 2:])
    value = factor * (theta[:, 1:2] + scale)
    by_power = -value * power * own
    jacobian = [by_power[:, :, None], factor[:, :, None], factor[:, :, None] * slopes]
    return value, np.concatenate(jacobian, axis=2)


def _bimix_centre(rows: Rows) -> Array:
    s = rows.scales
    power = np.full(len(s.constant), np.log(0.05))
    return np.hstack([np.stack([power, s.constant], axis=1), _scale_centre(rows)])


def _bimix_law(rows: Rows, theta: Array) -> Law:
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


def _inverse_sum(rows: Rows, theta: Array) -> tuple[Array, Array]:
    """1 / Σ_j C_j r_j^γ_j at (log C (M), log γ (M)): value (p, n), Jacobian (p, n, 2M)."""
    m = rows.mixtures.shape[1]
    weight, power = np.exp(theta[:, :m]), np.exp(theta[:, m:])
    parts = weight[:, None] * _powers(rows, power)
    value = 1 / np.maximum(parts.sum(axis=2), 1e-12)
    by_weight = -(value**2)[:, :, None] * parts
    return value, np.concatenate([by_weight, by_weight * rows.log_r * power[:, None]], axis=2)


def _linear_start(rows: Rows, centre: Array) -> Array:
    """Parameters, (V, k), where the inverse sum is near the mixtures' levels.

    Given E and one γ, 1 / (level − E) is linear in C: least squares with C ≥ 0, each level with the
    weight that makes its error that of the level itself; of a few γ the best.
    """
    m = rows.distinct.shape[1]
    start, powers = centre.copy(), [rows.distinct**power for power in BEGIN_POWERS]
    for v, levels in enumerate(rows.scales.levels.T):
        floor = levels.min() - BELOW * np.ptp(levels) - TINY * rows.sigma[v]
        y = levels - floor
        found = []
        for power, r in zip(BEGIN_POWERS, powers, strict=True):
            weight, _ = nnls(r * y[:, None] ** 2, y)
            error = np.minimum(1 / np.maximum(r @ weight, 1e-300), MOST * y.max()) - y
            found.append((float(error @ error), power, weight))
        _, power, weight = min(found, key=lambda one: one[0])
        start[v, 0] = rows.scales.constant[v] + floor
        start[v, 1 : m + 1] = np.log(np.maximum(weight, TINY * weight.max()))
        start[v, m + 1 : 2 * m + 1] = np.log(power)
    return start


def _inverse_sum_centre(rows: Rows) -> Array:
    """E and the inverse sum, which is a spread of the mixtures at the uniform one, (V, 1 + 2M)."""
    m = rows.mixtures.shape[1]
    weight = -np.log(rows.sigma * m ** (1 - START_POWER))
    floor = rows.scales.constant - rows.sigma
    parts = [np.tile(weight[:, None], m), np.full((len(weight), m), np.log(START_POWER))]
    return np.hstack([floor[:, None], *parts])


def _additive(rows: Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = E, log C (M), log γ (M), scale terms (4)."""
    m = rows.mixtures.shape[1]
    inverse, slopes = _inverse_sum(rows, theta[:, 1 : 2 * m + 1])
    scale, scale_slopes = _scale_terms(rows, theta[:, 2 * m + 1 :])
    ones = np.ones((*inverse.shape, 1))
    value = theta[:, :1] + inverse + scale
    return value, np.concatenate([ones, slopes, scale_slopes], axis=2)


def _additive_centre(rows: Rows) -> Array:
    return np.hstack([_inverse_sum_centre(rows), _scale_centre(rows)])


def _additive_law(rows: Rows, theta: Array) -> Law:
    return _shukor_joint_law(rows, _as_joint(rows, theta))


def _as_joint(rows: Rows, theta: Array) -> Array:
    """Parameters of the additive form as those of the joint one: equal a and b, powers of 1."""
    m = rows.mixtures.shape[1]
    scale, ones = theta[:, 2 * m + 1 :], np.ones((len(theta), 1))
    size = [np.tile(scale[:, :1], m), ones, scale[:, 1:2]]
    step = [np.tile(scale[:, 2:3], m), ones, scale[:, 3:4]]
    return np.hstack([theta[:, : 2 * m + 1], *size, *step])


def _mixed_scale(rows: Rows, theta: Array, log_scale: Array, exists: float) -> tuple[Array, Array]:
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


def _shukor_joint(rows: Rows, theta: Array, _: Array) -> tuple[Array, Array]:
    """θ = E, log C (M), log γ (M), and for size and step log a (M), κ, log α."""
    m = rows.mixtures.shape[1]
    inverse, slopes = _inverse_sum(rows, theta[:, 1 : 2 * m + 1])
    middle = 3 * m + 3
    size, by_size = _mixed_scale(rows, theta[:, 2 * m + 1 : middle], rows.log_n, rows.sizes)
    step, by_step = _mixed_scale(rows, theta[:, middle:], rows.log_d, rows.lengths)
    ones = np.ones((*inverse.shape, 1))
    value = theta[:, :1] + inverse + size + step
    return value, np.concatenate([ones, slopes, by_size, by_step], axis=2)


def _shukor_joint_centre(rows: Rows) -> Array:
    return _as_joint(rows, _additive_centre(rows))


def _shukor_joint_law(rows: Rows, theta: Array) -> Law:
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


METHODS: dict[str, tuple[Form, Callable[[Rows], Array], Callable[[Rows, Array], Law]]] = {
    "bimix": (_bimix, _bimix_centre, _bimix_law),
    "shukor_additive": (_additive, _additive_centre, _additive_law),
    "shukor_joint": (_shukor_joint, _shukor_joint_centre, _shukor_joint_law),
    "power_sum": (_power_sum, _power_sum_centre, _power_sum_law),
}
UNITS: dict[str, Callable[[int], Array]] = {  # which parameters have the unit of the losses, (k,)
    "bimix": lambda _: np.arange(6) == 1,
    "shukor_additive": lambda m: np.arange(2 * m + 5) == 0,
    "shukor_joint": lambda m: np.arange(4 * m + 5) == 0,
    "power_sum": lambda m: np.arange(m + 6) <= m,
}
INVERSE_SUMS = ("shukor_additive", "shukor_joint")

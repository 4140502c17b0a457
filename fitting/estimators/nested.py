"""Fit the paper's nested pipeline: step laws, then size laws, then the mixing law at the target."""

from dataclasses import dataclass, replace

import numpy as np

from fitting.artifact.laws import NestedLaw, features
from fitting.data.observations import Observations
from fitting.estimators import least_squares
from fitting.estimators.least_squares import Exponentials

Array = np.ndarray


@dataclass(frozen=True)
class Curves:
    """Steps 1 and 2: what the runs say of the scale, before any mixing law."""

    law: NestedLaw  # without its slope
    levels: Array  # losses of the fitted mixtures at the target, (m, V)


def fit_curves(
    observations: Observations,
    n_params: float,
    tokens: float,
    tie: str = "domain",
    huber: float | None = None,
) -> Curves:
    """Step law of every run and size law of every mixture, evaluated at the target.

    tie: exponents of each "curve", shared by the curves of a "domain" or by "all"; huber: nats
    per token beyond which a residual counts linearly.
    """
    o = observations
    n0, d0 = float(o.n_params.max()), float(o.tokens.max())
    _, first = np.unique(o.run_of, return_index=True)
    mixture_of, run_params = o.mixture_of[first], o.n_params[first]
    step = least_squares.power_laws(o.tokens / d0, o.losses, o.run_of, tie, huber)
    at_target = step.floor + step.scale * (tokens / d0) ** -step.exponent
    size = least_squares.power_laws(run_params / n0, at_target, mixture_of, tie, huber)
    law = NestedLaw(
        power=1.0,
        n0=n0,
        d0=d0,
        alpha=size.exponent,
        beta=step.exponent,
        slope=np.zeros((o.losses.shape[1], o.mixtures.shape[1])),
        mixtures=o.mixtures,
        mixture_of=mixture_of,
        n_params=run_params,
        step_floor=step.floor,
        step_scale=step.scale,
        counts=np.ones(len(o.mixtures)),
    )
    return Curves(law, size.floor + size.scale * (n_params / n0) ** -size.exponent)


def fit_mixing(
    curves: Curves,
    power: float,
    ridges: Array,
    start: Exponentials | int = 1,
    counts: Array | None = None,
) -> tuple[list[NestedLaw], Exponentials]:
    """Step 3, a law for each row of ridges (fits, V): an exponential of the mixture through the
    losses at the target.

    counts (fits, m): how often each mixture counts, for the bootstrap. Also the exponentials
    themselves, fit after fit, to start similar fits from.
    """
    fits, domains = len(ridges), curves.levels.shape[1]
    counts = np.ones((fits, len(curves.levels))) if counts is None else counts
    levels = np.tile(curves.levels.T, (fits, 1))
    phi = features(curves.law.mixtures, power)
    w = np.repeat(counts, domains, axis=0)
    found = least_squares.exponentials(phi, levels, w, ridges.ravel(), start)
    slopes = found.slope[:, 0].reshape(fits, domains, -1)
    return [
        replace(curves.law, power=power, slope=slope, counts=c)
        for slope, c in zip(slopes, counts, strict=True)
    ], found

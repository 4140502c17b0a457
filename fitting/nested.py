"""Fit the paper's nested pipeline: step laws, then size laws, then the mixing law at the target."""

from dataclasses import dataclass, replace

import numpy as np

from fitting import solve
from fitting.laws import NestedLaw, features
from fitting.table import Observations

Array = np.ndarray


@dataclass(frozen=True)
class Curves:
    """Steps 1 and 2: what the runs say of the scale, before any mixing law."""

    law: NestedLaw  # without its slope
    levels: Array  # losses of the fitted mixtures at the target, (m, V)


def fit_curves(observations: Observations, n_params: float, tokens: float) -> Curves:
    """Step law of every run and size law of every mixture, evaluated at the target."""
    o = observations
    n0, d0 = float(o.n_params.max()), float(o.tokens.max())
    _, first = np.unique(o.run_of, return_index=True)
    mixture_of, run_params = o.mixture_of[first], o.n_params[first]
    alphas, betas, floors, scales = [], [], [], []
    for losses in o.losses.T:
        step = solve.tied_power_law(o.tokens / d0, losses, o.run_of)
        at_target = step.floor + step.scale * (tokens / d0) ** -step.exponent
        size = solve.tied_power_law(run_params / n0, at_target, mixture_of)
        alphas.append(size.exponent)
        betas.append(step.exponent)
        floors.append(step.floor)
        scales.append(step.scale)
    law = NestedLaw(
        power=1.0,
        n0=n0,
        d0=d0,
        alpha=np.array(alphas),
        beta=np.array(betas),
        slope=np.zeros((o.losses.shape[1], o.mixtures.shape[1])),
        mixtures=o.mixtures,
        mixture_of=mixture_of,
        n_params=run_params,
        step_floor=np.stack(floors, axis=1),
        step_scale=np.stack(scales, axis=1),
    )
    return Curves(law, law.of_fitted_mixtures(n_params, tokens))


def fit_mixing(curves: Curves, power: float, ridges: Array) -> list[NestedLaw]:
    """Step 3, one law a ridge: an exponential of the mixture through the losses at the target."""
    found = solve.exponentials_by_ridge(
        features(curves.law.mixtures, power), curves.levels.T, ridges
    )
    return [replace(curves.law, power=power, slope=e.slope) for e in found]

"""The allowed mixture nearest to one that breaks a rule."""

from dataclasses import dataclass

import numpy as np

from optimization.domain.feasible import Feasible, tidy
from optimization.domain.objective import Objective
from optimization.search.descent import descend

Array = np.ndarray
UNIFORM, NEAR_UNIFORM = "uniform", "nearest to uniform"


@dataclass(frozen=True)
class _Nothing:
    """Losses that are all 0, so that an objective consists of its pull alone."""

    def predict(self, mixtures: Array) -> Array:
        return np.zeros((len(mixtures), 1))

    def jacobian(self, mixtures: Array) -> Array:
        return np.zeros((len(mixtures), 1, mixtures.shape[1]))


def nearest(mixture: Array, allowed: Feasible) -> Array:
    """The mixture (M,) itself if it is allowed; otherwise the allowed one with the smallest
    Kullback-Leibler divergence from it, to four decimals.

    Proportions that no rule affects keep their ratios. Every domain must have a proportion > 0.
    """
    if allowed.inside(mixture[None])[0]:
        return mixture
    start = allowed.spread @ allowed.inner
    if allowed.balls:
        start = min((b.centre for b in allowed.balls), key=lambda c: np.abs(c - mixture).sum())
    away = Objective(_Nothing(), np.zeros((1, 1)), np.zeros(1), reference=mixture, pull=1.0)
    return np.asarray(tidy(descend(away, allowed, start)[None], allowed)[0])


def uniform(allowed: Feasible) -> tuple[str, Array]:
    """The uniform mixture, or the nearest allowed one, (M,), and a name that says which it is."""
    domains = len(allowed.domains)
    even = np.full(domains, 1 / domains)
    projected = nearest(even, allowed)
    return (UNIFORM if projected is even else NEAR_UNIFORM), projected

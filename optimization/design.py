"""Which mixtures to train when nothing is known yet: a space-filling design."""

import numpy as np
from scipy.stats import qmc

from optimization import simplex

Array = np.ndarray
CANDIDATES = 2**13
ITERATIONS = 30
DECIMALS = 4


def space_filling(count: int, given: Array, lower: Array, upper: Array, seed: int) -> Array:
    """`count` mixtures, (count, M): the given ones, then others that cover what these leave.

    The others are the free centres of a k-means clustering of many scrambled Sobol points of the
    bounded simplex, in √r, where small proportions count; the given mixtures are fixed centres.
    Proportions are rounded to four decimals and sum to one.
    """
    sobol = qmc.Sobol(len(lower) - 1, seed=seed)
    candidates = np.sqrt(simplex.from_cube(sobol.random(CANDIDATES), lower, upper))
    given = np.asarray(given, float)[:count]
    centres = _farthest_points(candidates, np.sqrt(given), count)
    for _ in range(ITERATIONS):
        nearest = _distances(candidates, centres).argmin(axis=1)
        for i in range(len(given), count):
            centres[i] = candidates[nearest == i].mean(axis=0)
    free = centres[len(given) :] ** 2
    free /= free.sum(axis=1, keepdims=True)
    free = simplex.from_cube(simplex.to_cube(free, lower, upper), lower, upper)
    return np.vstack([given, [simplex.rounded(mixture, DECIMALS) for mixture in free]])


def _farthest_points(candidates: Array, given: Array, count: int) -> Array:
    """The given points, then each time the candidate farthest from those before it."""
    chosen = list(given)
    while len(chosen) < count:
        nearest = _distances(candidates, np.stack(chosen)).min(axis=1)
        chosen.append(candidates[nearest.argmax()])
    return np.stack(chosen)


def _distances(points: Array, centres: Array) -> Array:
    """Squared Euclidean distances, (points, centres)."""
    return ((points[:, None] - centres) ** 2).sum(axis=2)

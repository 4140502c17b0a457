"""The simplex of mixtures within bounds, and its map from the unit cube.

Stick-breaking: the proportions are drawn in turn, each from the interval that the bounds and the
earlier proportions leave. Without bounds a uniform point of the cube becomes a uniform point of the
simplex (Dirichlet(1, …, 1)). A coordinate near 0 takes nearly all of the rest, because floating
point is most precise near 0.
"""

import numpy as np

Array = np.ndarray


def from_cube(points: Array, lower: Array, upper: Array) -> Array:
    """Points of [0, 1]^(M-1), (n, M-1), as mixtures within the bounds, (n, M)."""
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    n, domains = len(points), len(lower)
    mixtures = np.empty((n, domains))
    rest = np.ones(n)
    for j in range(domains - 1):
        low, high = _interval(rest, lower, upper, j)
        share = 1 - points[:, j] ** (1 / (domains - 1 - j))
        mixtures[:, j] = low + (high - low) * share
        rest = rest - mixtures[:, j]
    mixtures[:, -1] = rest
    return mixtures


def to_cube(mixtures: Array, lower: Array, upper: Array) -> Array:
    """The inverse of `from_cube`, (n, M) → (n, M-1)."""
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    n, domains = mixtures.shape
    points = np.zeros((n, domains - 1))
    rest = np.ones(n)
    for j in range(domains - 1):
        low, high = _interval(rest, lower, upper, j)
        width = np.where(high > low, high - low, 1.0)
        share = np.clip((mixtures[:, j] - low) / width, 0, 1)
        points[:, j] = (1 - share) ** (domains - 1 - j)
        rest = rest - mixtures[:, j]
    return points


def rounded(mixture: Array, decimals: int) -> Array:
    """A mixture (M,), rounded to this many decimals; it still sums to one."""
    result = np.round(mixture, decimals)
    result[np.argmax(result)] += 1 - result.sum()
    return np.round(result, decimals)


def _interval(rest: Array, lower: Array, upper: Array, j: int) -> tuple[Array, Array]:
    """The range that domain j may take of `rest` so that the later domains still fit."""
    low = np.maximum(lower[j], rest - upper[j + 1 :].sum())
    high = np.minimum(upper[j], rest - lower[j + 1 :].sum())
    return low, np.maximum(low, high)

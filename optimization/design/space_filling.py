"""Space-filling designs: the mixtures to train before anything is known."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import qmc

from optimization.domain.feasible import ROUNDING, Feasible, tidy
from training.record.errors import InputError

Array = np.ndarray
SPREAD, HALVED, SOBOL, DIRICHLET = "spread", "halved", "sobol", "dirichlet"
WAYS = (SPREAD, HALVED, SOBOL, DIRICHLET)
CANDIDATES = 2**13
ITERATIONS = 30
GRID = 1 / 16
MOST_HALVED = 200_000
DRAWS = 1000  # of the Dirichlet distribution, for each mixture of the design


def designed(
    way: str,
    count: int,
    fixed: Array,
    allowed: Feasible,
    seed: int,
    reference: Array | None = None,
    concentration: float = 10.0,
) -> Array:
    """`count` mixtures, (count, M): the fixed ones (g, M), then new ones by one of WAYS.

    `dirichlet` draws around `reference` (M,): the larger the concentration, the closer.
    Raises InputError if the allowed set has too few mixtures.
    """
    fixed = np.asarray(fixed, float)[:count]
    missing = count - len(fixed)
    if missing and np.ptp([allowed.lower, allowed.upper], axis=0).max() < ROUNDING:
        raise InputError(
            "sweep.mixtures: bounds and bundles leave a single mixture; loosen them to train more"
        )
    if way == SPREAD:
        added = spread(missing, fixed, allowed, seed)
    elif way == HALVED:
        added = _drawn(np.array(list(halved_grid(allowed))), fixed, missing, seed)
    elif way == SOBOL:
        added = sobol(allowed, missing, seed)
    else:
        assert reference is not None
        added = dirichlet(allowed, missing, reference, concentration, seed)
    return np.vstack([fixed, added])


def spread(count: int, fixed: Array, allowed: Feasible, seed: int) -> Array:
    """Mixtures, (count, M), that cover the allowed set together with the fixed ones (g, M).

    They are the free centres of a k-means clustering of many Sobol points; the fixed mixtures are
    fixed centres. Distances are in √r, so that small proportions count.
    """
    candidates = np.sqrt(sobol(allowed, CANDIDATES, seed, rounded=False))
    start = np.sqrt(farthest(candidates**2, fixed, count))
    centres = np.vstack([np.sqrt(fixed), start])
    for _ in range(ITERATIONS):
        nearest = _distances(candidates, centres).argmin(axis=1)
        for i in range(len(fixed), len(centres)):
            centres[i] = candidates[nearest == i].mean(axis=0)
    free = centres[len(fixed) :] ** 2
    return tidy(free / free.sum(axis=1, keepdims=True), allowed)


def sobol(allowed: Feasible, count: int, seed: int, *, rounded: bool = True) -> Array:
    """Scrambled Sobol points of the allowed set, (count, M)."""
    points = qmc.Sobol(allowed.free, seed=seed).random(2 ** int(np.ceil(np.log2(max(1, count)))))
    mixtures = allowed.from_cube(points[:count])
    return tidy(mixtures, allowed) if rounded else mixtures


def dirichlet(
    allowed: Feasible, count: int, reference: Array, concentration: float, seed: int
) -> Array:
    """Draws around a reference (M,) that satisfy the constraints, (count, M); others are discarded.

    Dirichlet(concentration · M · reference): concentration 1 around the uniform mixture is uniform
    over the simplex.
    """
    if not concentration > 0:
        raise InputError(f"concentration: {concentration:g}; it must be more than 0")
    variables = allowed.variables(reference[None])[0]
    shape = np.maximum(concentration * len(variables) * variables, 1e-3)
    drawn = np.random.default_rng(seed).dirichlet(shape, DRAWS * max(1, count))
    mixtures = drawn @ allowed.spread.T
    inside = mixtures[allowed.inside(mixtures)][:count]
    if len(inside) < count:
        raise InputError(
            f"design: of {len(drawn):,} draws around the reference {len(inside)} satisfy the "
            f"constraints; {count} are needed. Raise the concentration, or choose another design"
        )
    return tidy(inside, allowed)


def halved_grid(allowed: Feasible, grid: float = GRID) -> Iterator[Array]:
    """Every allowed mixture on the grid of halved proportions.

    Each proportion except the last is 0, or its highest value, rounded down to the grid and halved
    any number of times, but not below the grid. The last takes the rest. Source: the candidates of
    arXiv 2403.16952.
    """
    options = []
    for highest in allowed.upper[:-1]:
        value, halved = grid * int(highest / grid + 1e-9), [0.0]
        while value >= grid:
            halved.append(value)
            value /= 2
        options.append(sorted(halved))

    def grown(i: int, rest: float) -> Iterator[list[float]]:
        if i == len(options):
            yield [rest]
            return
        for value in options[i]:
            if value <= rest:
                for later in grown(i + 1, rest - value):
                    yield [value, *later]

    for count, variables in enumerate(grown(0, 1.0)):
        if count == MOST_HALVED:
            raise InputError(
                f"design: the grid of halved proportions has more than {MOST_HALVED:,} mixtures; "
                "choose another design, or lower the bounds"
            )
        mixture = allowed.spread @ variables
        if allowed.inside(mixture[None])[0]:
            yield mixture


def _drawn(grid: Array, fixed: Array, count: int, seed: int) -> Array:
    """Mixtures drawn from the grid without replacement, none of them a fixed one."""
    new = grid[_distances(grid, fixed).min(axis=1, initial=np.inf) > ROUNDING**2]
    if len(new) < count:
        raise InputError(
            f"design: {count} mixtures are needed, the grid of halved proportions has {len(new)}; "
            "choose another design, or fewer mixtures"
        )
    return np.random.default_rng(seed).choice(new, count, replace=False)


def farthest(candidates: Array, fixed: Array, count: int) -> Array:
    """`count` of the candidates (n, M), each the farthest, in √r, from fixed and chosen ones."""
    points = np.sqrt(candidates)
    centres = np.sqrt(fixed) if len(fixed) else points.mean(axis=0)[None]
    nearest = _distances(points, centres).min(axis=1)
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(points, points[chosen[-1:]])[:, 0])
    return candidates[chosen]


def _distances(points: Array, centres: Array) -> Array:
    """Squared Euclidean distances, (points, centres)."""
    return ((points[:, None] - centres) ** 2).sum(axis=2)

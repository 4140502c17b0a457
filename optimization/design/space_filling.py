"""Which mixtures to train when nothing is known yet: designs that fill the allowed set."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import qmc

from optimization.domain.feasible import DECIMALS, Feasible, tidy
from training.record.errors import InputError

Array = np.ndarray
SPREAD, HALVED, SOBOL, DIRICHLET = "spread", "halved", "sobol", "dirichlet"
WAYS = (SPREAD, HALVED, SOBOL, DIRICHLET)
CANDIDATES = 2**13
ITERATIONS = 30
GRID = 1 / 16
MOST_HALVED = 200_000
DRAWS = 1000  # of a Dirichlet distribution, for each mixture that is wanted


def designed(
    way: str,
    count: int,
    given: Array,
    allowed: Feasible,
    seed: int,
    reference: Array | None = None,
    concentration: float = 10.0,
) -> Array:
    """`count` mixtures, (count, M): the given ones (g, M), then others by one of WAYS.

    `reference` (M,) is what `dirichlet` draws around: the larger the concentration, the closer.
    Raises InputError where there are not so many.
    """
    given = np.asarray(given, float)[:count]
    wanted = count - len(given)
    if wanted and np.ptp([allowed.lower, allowed.upper], axis=0).max() < 10**-DECIMALS:
        raise InputError(
            "sweep.mixtures: bounds and bundles leave a single mixture; loosen them to train more"
        )
    if way == SPREAD:
        found = spread(wanted, given, allowed, seed)
    elif way == HALVED:
        found = _drawn(np.array(list(halved_grid(allowed))), given, wanted, seed)
    elif way == SOBOL:
        found = sobol(allowed, wanted, seed)
    else:
        assert reference is not None
        found = dirichlet(allowed, wanted, reference, concentration, seed)
    return np.vstack([given, found])


def spread(wanted: int, given: Array, allowed: Feasible, seed: int) -> Array:
    """Mixtures that cover what the given ones leave, (wanted, M).

    They are the free centres of a k-means clustering of many Sobol points, in √r, where small
    proportions count; the given mixtures are fixed centres.
    """
    candidates = np.sqrt(sobol(allowed, CANDIDATES, seed, rounded=False))
    start = np.sqrt(farthest(candidates**2, given, wanted))
    centres = np.vstack([np.sqrt(given), start])
    for _ in range(ITERATIONS):
        nearest = _distances(candidates, centres).argmin(axis=1)
        for i in range(len(given), len(centres)):
            centres[i] = candidates[nearest == i].mean(axis=0)
    free = centres[len(given) :] ** 2
    return tidy(free / free.sum(axis=1, keepdims=True), allowed)


def sobol(allowed: Feasible, wanted: int, seed: int, *, rounded: bool = True) -> Array:
    """Scrambled Sobol points of the allowed set, (wanted, M)."""
    points = qmc.Sobol(allowed.free, seed=seed).random(2 ** int(np.ceil(np.log2(max(1, wanted)))))
    found = allowed.from_cube(points[:wanted])
    return tidy(found, allowed) if rounded else found


def dirichlet(
    allowed: Feasible, wanted: int, reference: Array, concentration: float, seed: int
) -> Array:
    """Draws around a reference (M,) that break no constraint, (wanted, M); others are drawn again.

    Dirichlet(concentration · M · reference): a concentration of 1 around uniform is uniform.
    """
    if not concentration > 0:
        raise InputError(f"concentration: {concentration:g}; it must be more than 0")
    variables = allowed.variables(reference[None])[0]
    shape = np.maximum(concentration * len(variables) * variables, 1e-3)
    drawn = np.random.default_rng(seed).dirichlet(shape, DRAWS * max(1, wanted))
    mixtures = drawn @ allowed.spread.T
    inside = mixtures[allowed.inside(mixtures)][:wanted]
    if len(inside) < wanted:
        raise InputError(
            f"design: of {len(drawn):,} draws around the reference {len(inside)} satisfy the "
            f"constraints; {wanted} are wanted. Raise the concentration, or choose another design"
        )
    return tidy(inside, allowed)


def halved_grid(allowed: Feasible, grid: float = GRID) -> Iterator[Array]:
    """Every mixture whose proportions are the highest allowed ones halved again and again.

    Each proportion but the last is its highest, rounded down to the grid, halved until it is less
    than the grid, or 0; the last takes what is left. Source: the candidates of arXiv 2403.16952.
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
                for others in grown(i + 1, rest - value):
                    yield [value, *others]

    for count, variables in enumerate(grown(0, 1.0)):
        if count == MOST_HALVED:
            raise InputError(
                f"design: the grid of halved proportions has more than {MOST_HALVED:,} mixtures; "
                "choose another design, or lower the bounds"
            )
        mixture = allowed.spread @ variables
        if allowed.inside(mixture[None])[0]:
            yield mixture


def _drawn(grid: Array, given: Array, wanted: int, seed: int) -> Array:
    """Mixtures of the grid, drawn without replacement, that are not given already."""
    new = grid[_distances(grid, given).min(axis=1, initial=np.inf) > 10 ** (-2 * DECIMALS)]
    if len(new) < wanted:
        raise InputError(
            f"design: {wanted} mixtures are wanted, the grid of halved proportions has {len(new)}; "
            "choose another design, or fewer"
        )
    return np.random.default_rng(seed).choice(new, wanted, replace=False)


def farthest(candidates: Array, given: Array, wanted: int) -> Array:
    """Of candidates (n, M) each time the one farthest, in √r, from the given and chosen ones."""
    points = np.sqrt(candidates)
    centres = np.sqrt(given) if len(given) else points.mean(axis=0)[None]
    nearest = _distances(points, centres).min(axis=1)
    chosen: list[int] = []
    while len(chosen) < wanted:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(points, points[chosen[-1:]])[:, 0])
    return candidates[chosen]


def _distances(points: Array, centres: Array) -> Array:
    """Squared Euclidean distances, (points, centres)."""
    return ((points[:, None] - centres) ** 2).sum(axis=2)

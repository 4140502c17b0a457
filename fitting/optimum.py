"""Where a law's best mixture lies, and whether it stays there as models grow."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fitting import methods
from fitting.laws import Law
from fitting.methods import Candidate, Target
from fitting.table import Observations

Array = np.ndarray

SAMPLES = 2000
STEP = 1e-6  # of the forward differences


@dataclass(frozen=True)
class Optimum:
    """The mixture with the least objective at one scale."""

    n_params: float
    tokens: float
    mixture: Array  # (M,)
    objective: float
    law: Law


def minimise(
    law: Law, weights: Array, target: Target, fitted: Array, low: Array, high: Array, seed: int = 0
) -> Optimum:
    """The best mixture within bounds (M,), from the best of many samples and the fitted ones."""

    def objective(mixtures: Array) -> Array:
        ones = np.ones(len(mixtures))
        return law.predict(mixtures, target.n_params * ones, target.tokens * ones) @ weights

    def slope(r: Array) -> Array:
        moved = objective(np.vstack([r, r + STEP * np.eye(len(r))]))
        return (moved[1:] - moved[0]) / STEP

    rng = np.random.default_rng(seed)
    samples = np.vstack([fitted, rng.dirichlet(np.ones(len(low)), SAMPLES)])
    inside = ((samples >= low) & (samples <= high)).all(axis=1)
    samples = samples[inside] if inside.any() else fitted
    start = samples[np.argmin(objective(samples))]
    found = minimize(
        lambda r: float(objective(r[None])[0]),
        start,
        jac=slope,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": np.ones_like},
    )
    mixture = np.clip(found.x, low, high)
    mixture /= mixture.sum()
    if not found.success or objective(mixture[None])[0] > objective(start[None])[0]:
        mixture = start
    least = float(objective(mixture[None])[0])
    return Optimum(target.n_params, target.tokens, mixture, least, law)


def by_size(
    observations: Observations,
    candidate: Candidate,
    weights: Array,
    low: Array,
    high: Array,
) -> list[Optimum]:
    """The best mixture of each of several sizes by a law of its runs alone, at their end."""
    found: list[Optimum] = []
    sizes, runs = np.unique(observations.n_params, return_counts=True)
    enough = sizes[runs > len(observations.domains)] if len(sizes) > 1 else ()
    for size in enough:
        o = observations.rows(observations.n_params == size)
        if len(o.mixtures) > len(o.domains):  # else the ridge would choose
            end = Target(float(size), float(o.tokens.max()))
            law = methods.fit(o, candidate, end)
            found.append(minimise(law, weights, end, o.mixtures, low, high))
    return found


def apart(first: Array, second: Array) -> Array:
    """The share of tokens that separates mixtures: half the sum of |differences|."""
    return np.abs(first - second).sum(axis=-1) / 2


def spacing(mixtures: Array) -> float:
    """The largest distance of a fitted mixture from its nearest neighbour."""
    distances = apart(mixtures[:, None], mixtures[None])
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(axis=1).max())

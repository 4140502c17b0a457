"""Where a law's best mixture lies, and whether it stays there as models grow."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import minimize

from fitting.artifact.laws import Law
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate, Memory, Stack

Array = np.ndarray

SAMPLES = 2000
STEP = 1e-6  # of the forward differences


@dataclass(frozen=True)
class Space:
    """Mixtures r = P v with v within bounds and Σ v = 1."""

    low: Array  # (M',)
    high: Array
    spread: Array  # P, (M, M'): a column a domain, or several that keep their proportions

    @classmethod
    def whole(cls, domains: int) -> Self:
        """Every mixture of so many domains."""
        return cls(np.zeros(domains), np.ones(domains), np.eye(domains))


@dataclass(frozen=True)
class Optimum:
    """The mixture with the least objective at one scale."""

    n_params: float
    tokens: float
    mixture: Array  # (M,)
    objective: float
    law: Law


def minimise(
    law: Law, weights: Array, target: Target, fitted: Array, space: Space, seed: int = 0
) -> Optimum:
    """The best mixture of a space, from the best of many samples and the fitted ones."""
    low, high = space.low, space.high

    def objective(variables: Array) -> Array:
        ones, mixtures = np.ones(len(variables)), variables @ space.spread.T
        return law.predict(mixtures, target.n_params * ones, target.tokens * ones) @ weights

    def slope(v: Array) -> Array:
        moved = objective(np.vstack([v, v + STEP * np.eye(len(v))]))
        return (moved[1:] - moved[0]) / STEP

    rng = np.random.default_rng(seed)
    fitted = fitted @ (space.spread > 0)
    samples = np.vstack([fitted, rng.dirichlet(np.ones(len(low)), SAMPLES)])
    inside = ((samples >= low) & (samples <= high)).all(axis=1)
    samples = samples[inside] if inside.any() else fitted
    start = samples[np.argmin(objective(samples))]
    found = minimize(
        lambda v: float(objective(v[None])[0]),
        start,
        jac=slope,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": np.ones_like},
    )
    best = np.clip(found.x, low, high)
    best /= best.sum()
    if not found.success or objective(best[None])[0] > objective(start[None])[0]:
        best = start
    least = float(objective(best[None])[0])
    return Optimum(target.n_params, target.tokens, space.spread @ best, least, law)


def by_size(
    observations: Observations,
    way: Candidate | Stack,
    weights: Array,
    space: Space,
    memory: Memory,
) -> list[Optimum]:
    """The best mixture of each of several sizes by a law of its runs alone, at their end."""
    found: list[Optimum] = []
    sizes, runs = np.unique(observations.n_params, return_counts=True)
    enough = sizes[runs > len(observations.domains)] if len(sizes) > 1 else ()
    for size in enough:
        o = observations.rows(observations.n_params == size)
        if len(o.mixtures) > len(o.domains):  # else the ridge would choose
            end = Target(float(size), float(o.tokens.max()))
            law = candidates.fit(o, way, end, candidates.starts(memory))
            found.append(minimise(law, weights, end, o.mixtures, space))
    return found


def apart(first: Array, second: Array) -> Array:
    """The share of tokens that separates mixtures: half the sum of |differences|."""
    return np.abs(first - second).sum(axis=-1) / 2


def spacing(mixtures: Array) -> float:
    """The largest distance of a fitted mixture from its nearest neighbour."""
    distances = apart(mixtures[:, None], mixtures[None])
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(axis=1).max())

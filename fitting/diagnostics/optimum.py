"""Where a law's best mixture lies, and whether it stays there as models grow."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import minimize

from fitting.artifact.laws import LEAST, Law
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate, Memory, Stack

Array = np.ndarray

SAMPLES = 2000
STARTS = 6


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
    """The best mixture of a space, by descents from the best of many samples and of the fitted."""
    low, high = space.low, space.high

    at_target = law.mixing(target.n_params, target.tokens)

    def objective(variables: Array) -> Array:
        return np.asarray(at_target.predict(variables @ space.spread.T) @ weights)

    def smooth(roots: Array) -> tuple[float, Array]:
        """Of v = roots²: in the roots a loss has no infinite slope at 0."""
        mixture = (space.spread @ roots**2)[None]
        slope = weights @ at_target.jacobian(mixture)[0]
        inner = 2 * np.sqrt(np.maximum(roots**2, LEAST))  # at 0 as the slopes of the law
        return float(at_target.predict(mixture)[0] @ weights), inner * (space.spread.T @ slope)

    rng = np.random.default_rng(seed)
    fitted = fitted @ (space.spread > 0)
    samples = np.vstack([fitted, rng.dirichlet(np.ones(len(low)), SAMPLES)])
    inside = ((samples >= low) & (samples <= high)).all(axis=1)
    samples = samples[inside] if inside.any() else fitted
    starts = samples[np.argsort(objective(samples))[:STARTS]]
    ends = [starts[0]]
    for start in starts:
        found = minimize(
            smooth,
            np.sqrt(start),
            jac=True,
            method="SLSQP",
            bounds=list(zip(np.sqrt(low), np.sqrt(high), strict=True)),
            constraints={"type": "eq", "fun": lambda x: x @ x - 1, "jac": lambda x: 2 * x},
        )
        end = np.clip(found.x**2, low, high)
        ends.append(end / end.sum())
    values = objective(np.array(ends))
    best, least = ends[int(np.argmin(values))], float(values.min())
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
    sizes = np.unique(observations.n_params)
    for size in sizes if len(sizes) > 1 else ():
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

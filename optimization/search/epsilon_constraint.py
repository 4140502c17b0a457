"""Minimise one objective while another stays below a level: the most that can be learnt without
forgetting more than is allowed."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import qmc

from optimization.domain.feasible import Feasible
from optimization.domain.objective import Objective
from optimization.search.certificate import prove
from optimization.search.descent import descend, descend_within

Array = np.ndarray

SAMPLES = 1024
STARTS = 4  # best samples within the level, from which the descent begins
LARGEST_MULTIPLIER = 1e3


@dataclass(frozen=True)
class EpsilonConstraint:
    """Minimises an objective over the allowed mixtures, below levels of another one, the limit.

    Each of the two is one sum of the losses, by the same law.
    """

    objective: Objective
    limit: Objective
    allowed: Feasible
    samples: Array  # allowed mixtures, (n, M); the last has the lowest limit

    @property
    def least_level(self) -> float:
        """The lowest value of the limit."""
        return float(self.limit(self.samples[-1][None])[0])

    def limited_by(self, limit: Objective) -> "EpsilonConstraint":
        """The same search with another limit."""
        return search(self.objective, limit, self.allowed, self.samples)

    def unlimited(self) -> Array:
        """The best mixture, (M,), ignoring the limit."""
        start = self.samples[self.objective(self.samples).argmin()]
        return descend(self.objective, self.allowed, start)

    def best(self, level: float) -> Array | None:
        """The best mixture, (M,), within the level; None if there is none."""
        inside = self.samples[self.limit(self.samples) <= level]
        if not len(inside):
            return None
        starts = inside[self.objective(inside).argsort(kind="stable")[:STARTS]]
        ends = np.array(
            [
                descend_within(self.objective, self.limit, level, self.allowed, start)
                for start in starts
            ]
        )
        return np.asarray(ends[self.objective(ends).argmin()])

    def bound(self, best: Array, level: float) -> float | None:
        """A lower bound of the objective over the allowed mixtures within the level.

        By Lagrangian duality: for every multiplier μ ≥ 0 the minimum of f + μ (g − level) lies
        below the minimum of f where g ≤ level. The highest such bound is returned; None if no bound
        can be proven.
        """
        if self.limit.risk is not None:
            return None

        def proven(multiplier: float) -> float:
            sums = self.objective.sums + multiplier * self.limit.sums
            least = prove(replace(self.objective, sums=sums), self.allowed, best)[1]
            return -np.inf if least is None else least - multiplier * level

        free = proven(0.0)
        if not np.isfinite(free):
            return None
        highest = minimize_scalar(
            lambda u: -proven(np.expm1(u)),
            bounds=(0.0, np.log1p(LARGEST_MULTIPLIER)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return max(-float(highest.fun), free)


def search(
    objective: Objective, limit: Objective, allowed: Feasible, known: Array, seed: int = 0
) -> EpsilonConstraint:
    """Prepare searches below several levels. Those of the known mixtures (n, M) that are allowed
    are samples too."""
    cube = qmc.Sobol(max(1, allowed.free), rng=seed).random(SAMPLES)[:, : allowed.free]
    samples = np.vstack([allowed.from_cube(cube), known[allowed.inside(known)]])
    least = descend(limit, allowed, samples[limit(samples).argmin()])
    return EpsilonConstraint(objective, limit, allowed, np.vstack([samples, least]))

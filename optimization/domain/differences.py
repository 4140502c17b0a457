"""How certain it is that one mixture is better than another.

Errors that all mixtures share, such as those of the step and size laws, cancel in a difference.
Every comparison of mixtures rests on this: the gain, the near-optimal set and the verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import softmax

from optimization.domain.objective import LEAST, Objective
from optimization.domain.predictor import Predictor, Surface

Array = np.ndarray
FLOOR = 1e-20  # variance, (nats per token)²: keeps the slope at the base mixture finite


@dataclass(frozen=True)
class Differences:
    """The difference of an objective from its value at a base mixture, and the half width of the
    90 % interval of that difference (docs/math.md, "Differences").

    variance = mean square of what the laws of the bootstrap add to the difference
             + 2 · residual · (1 − exp(−h² / reach²)), h² = Σ_j (√r_j − √base_j)²
    """

    objective: Objective  # without its pull and risk
    base: Array  # (M,)
    replicates: Sequence[Surface]
    residual: float  # variance of a mixture's error beyond what the bootstrap shows
    residuals: Array  # the same of each loss, (V,)
    reach: float  # length scale of h over which the errors become independent
    quantile: float  # of the error, in standard deviations

    @classmethod
    def of(cls, predictor: Predictor, objective: Objective, base: Array) -> "Differences":
        """The differences of a predictor's objective from a base mixture (M,)."""
        interval = predictor.artifact_model.interval
        beyond = interval.distance(predictor.n_params, predictor.tokens)
        own = getattr(interval, "own", interval.common)  # older models have no `own`
        plain = Objective(objective.surface, objective.sums, objective.offsets)
        return cls(
            objective=plain,
            base=base,
            replicates=predictor.replicates,
            residual=float(np.max(own(objective.sums, beyond))),
            residuals=np.ravel(own(np.eye(len(objective.sums)), beyond)),
            reach=_reach(predictor.fitted),
            quantile=interval.quantile,
        )

    def mean(self, mixtures: Array) -> Array:
        """The difference by the law, (n,), of mixtures (n, M)."""
        return np.asarray(self.objective(mixtures) - self._base_mean)

    def half_width(self, mixtures: Array) -> Array:
        """Half the 90 % interval of the difference, (n,), of mixtures (n, M)."""
        added = self._drawn(mixtures) - self.mean(mixtures)
        own = 2 * self.residual * -np.expm1(-self._apart(mixtures))
        return np.asarray(self.quantile * np.sqrt((added**2).mean(axis=0) + own))

    def by_loss(self, mixtures: Array) -> tuple[Array, Array]:
        """The difference of each loss by the law and half its 90 % interval, (n, V) each, of
        mixtures (n, M)."""
        surface = self.objective.surface
        mean = surface.predict(mixtures) - surface.predict(self.base[None])
        added = self._losses(mixtures) - self._base_losses - mean
        own = 2 * np.multiply.outer(-np.expm1(-self._apart(mixtures)), self.residuals)
        return mean, self.quantile * np.sqrt((added**2).mean(axis=0) + own)

    def __call__(self, mixtures: Array) -> Array:
        """The lower end of the interval, (n,): at most 0 where a mixture may be no worse."""
        return self.mean(mixtures) - self.half_width(mixtures)

    def smooth(self, mixture: Array, temperature: float) -> tuple[float, Array]:
        """The lower end at one mixture (M,) and its gradient, (M,)."""
        row = mixture[None]
        mean, slope = self.mean(row)[0], self.objective.smooth(mixture, temperature)[1]
        parts = self._parts(row)[:, 0]
        added = parts.max(axis=1) - self._base_drawn[:, 0] - mean
        roots = np.sqrt(np.maximum(mixture, LEAST))
        apart = float(((roots - np.sqrt(self.base)) ** 2).sum())
        near = np.exp(-apart / self.reach**2)
        variance = (added**2).mean() + 2 * self.residual * (1 - near) + FLOOR
        rise = 2 * added @ (self._slopes(mixture, parts, temperature) - slope) / len(added)
        rise = rise + 2 * self.residual * near / self.reach**2 * (1 - np.sqrt(self.base) / roots)
        deviation = np.sqrt(variance)
        value = float(mean - self.quantile * deviation)
        return value, slope - self.quantile * rise / (2 * deviation)

    @cached_property
    def _base_mean(self) -> Array:
        """The objective at the base by the law, (1,)."""
        return self.objective(self.base[None])

    @cached_property
    def _base_losses(self) -> Array:
        """The losses at the base by each law of the bootstrap, (B, 1, V)."""
        return self._losses(self.base[None])

    def _apart(self, mixtures: Array) -> Array:
        """h² / reach², (n,), of mixtures (n, M)."""
        apart = ((np.sqrt(mixtures) - np.sqrt(self.base)) ** 2).sum(axis=1)
        return np.asarray(apart / self.reach**2)

    @cached_property
    def _base_drawn(self) -> Array:
        """The objective at the base by each law of the bootstrap, (B, 1)."""
        return np.asarray(self._parts(self.base[None]).max(axis=2))

    @cached_property
    def _stacked(self) -> Sequence[Surface]:
        """The laws of the bootstrap as one law of B · V losses, where they can be."""
        together = getattr(self.replicates[0], "side_by_side", None)
        return [together(self.replicates)] if together else self.replicates

    def _losses(self, mixtures: Array) -> Array:
        """The losses by each law of the bootstrap, (B, n, V)."""
        every = np.concatenate([s.predict(mixtures) for s in self._stacked], axis=1)
        shape = (len(mixtures), len(self.replicates), len(self.objective.sums))
        return every.reshape(shape).transpose(1, 0, 2)

    def _parts(self, mixtures: Array) -> Array:
        return self._losses(mixtures) @ self.objective.sums - self.objective.offsets

    def _drawn(self, mixtures: Array) -> Array:
        """The difference by each law of the bootstrap, (B, n)."""
        return np.asarray(self._parts(mixtures).max(axis=2) - self._base_drawn)

    def _slopes(self, mixture: Array, parts: Array, temperature: float) -> Array:
        """The gradient of the objective by each law of the bootstrap, (B, M), which makes the
        objective's sums at the mixture parts (B, k)."""
        row = mixture[None]
        jacobian = np.concatenate([s.jacobian(row)[0] for s in self._stacked])
        jacobian = jacobian.reshape(len(self.replicates), -1, len(mixture))
        shares = softmax(parts / temperature, axis=1)  # (B, k)
        return np.einsum("bk,vk,bvm->bm", shares, self.objective.sums, jacobian, optimize=True)


def _reach(mixtures: Array) -> float:
    """The median distance h between a fitted mixture and its nearest neighbour."""
    roots = np.sqrt(mixtures)
    apart = np.sqrt(((roots[:, None] - roots[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(axis=1)))

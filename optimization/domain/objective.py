"""What the search minimises: a weighted loss, or the worst domain's excess over a reference.

A pessimistic objective is the upper end of its interval. A pull towards a reference mixture may be
added. All values are in nats per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import logsumexp, softmax

from optimization.domain.predictor import Predictor, Surface

Array = np.ndarray

LOSS, WORST, DEVIATION = "loss", "worst", "deviation"  # names of objectives
LEAST = 1e-14  # lowest proportion at which slopes are evaluated: at 0 they are infinite


@dataclass(frozen=True)
class Risk:
    """The uncertainty of the sums that make up an objective."""

    replicates: Sequence[Surface]
    common: Array  # variance shared by all mixtures, (k,)
    quantile: float

    def half_width(self, mixtures: Array, sums: Array) -> Array:
        """Half widths, (n, k), of sums (V, k) of the losses of mixtures (n, M)."""
        drawn = [surface.predict(mixtures) @ sums for surface in self.replicates]
        return self.quantile * np.sqrt(np.var(drawn, axis=0) + self.common)

    def slope(self, mixture: Array, sums: Array) -> Array:
        """The gradient of the half widths of one mixture, (k, M)."""
        row = mixture[None]
        drawn = np.array([surface.predict(row)[0] @ sums for surface in self.replicates])
        slopes = np.array([sums.T @ surface.jacobian(row)[0] for surface in self.replicates])
        centred = drawn - drawn.mean(axis=0)
        deviation = np.sqrt((centred**2).mean(axis=0) + self.common)
        rise = np.einsum("bk,bkm->km", centred, slopes) / len(drawn)
        return self.quantile * rise / np.maximum(deviation, 1e-300)[:, None]


@dataclass(frozen=True)
class Objective:
    """The largest of several sums of the losses, each minus an offset.

    One sum with the domains' weights and no offset is the weighted loss. One sum for each domain,
    minus the reference's loss, is the worst domain's excess.
    """

    surface: Surface
    sums: Array  # (V, k)
    offsets: Array  # (k,)
    risk: Risk | None = None
    reference: Array | None = None  # (M,)
    pull: float = 0.0  # factor of the Kullback-Leibler divergence (nats) from the reference

    def __call__(self, mixtures: Array) -> Array:
        """Values, (n,), of mixtures (n, M)."""
        return self._parts(mixtures).max(axis=1) + self.pull_value(mixtures)

    def smooth(self, mixture: Array, temperature: float) -> tuple[float, Array]:
        """Value of one mixture (M,) and its gradient (M,). The maximum of several sums becomes
        temperature · log Σ exp(sum / temperature)."""
        row = mixture[None]
        parts = self._parts(row)[0]
        slopes = self.sums.T @ self.surface.jacobian(row)[0]
        if self.risk is not None:
            slopes = slopes + self.risk.slope(mixture, self.sums)
        value = float(self.pull_value(row)[0])
        if len(parts) == 1:
            value += parts[0]
        else:
            value += float(temperature * logsumexp(parts / temperature))
        return value, softmax(parts / temperature) @ slopes + self.pull_slope(mixture)

    def shares(self, mixture: Array, temperature: float) -> Array:
        """The share of each sum in the smooth objective, (k,), summing to one."""
        return np.asarray(softmax(self._parts(mixture[None])[0] / temperature))

    def pulled(self, strength: float) -> Self:
        """The same objective with another strength of the pull."""
        return replace(self, pull=strength)

    def pull_value(self, mixtures: Array) -> Array:
        """The value that the pull adds, (n,)."""
        if not self.pull or self.reference is None:
            return np.zeros(len(mixtures))
        return self.pull * divergence(mixtures, self.reference)

    def pull_slope(self, mixture: Array) -> Array:
        """The gradient of the pull, (M,)."""
        if not self.pull or self.reference is None:
            return np.zeros(len(mixture))
        present = self.reference > 0
        ratio = np.maximum(mixture, LEAST) / np.where(present, self.reference, 1.0)
        return np.where(present, self.pull * (np.log(ratio) + 1), 0.0)

    def _parts(self, mixtures: Array) -> Array:
        parts = self.surface.predict(mixtures) @ self.sums - self.offsets
        return parts if self.risk is None else parts + self.risk.half_width(mixtures, self.sums)


def divergence(mixtures: Array, reference: Array) -> Array:
    """Kullback-Leibler divergence from a reference (M,), Σ r log(r / reference), nats, (n,).

    Infinite for a mixture with a domain that the reference lacks.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = mixtures * np.log(mixtures / reference)
    return np.where(mixtures > 0, terms, 0.0).sum(axis=1)


def weighted(predictor: Predictor, weights: Array, *, pessimistic: bool = False) -> Objective:
    """Σ w_i L_i, or the upper end of its interval."""
    sums = weights[:, None]
    risk = _risk(predictor, sums) if pessimistic else None
    return Objective(predictor.surface, sums, np.zeros(1), risk)


def worst_excess(
    predictor: Predictor, weights: Array, reference: Array, *, pessimistic: bool = False
) -> Objective:
    """The largest L_i(r) − L_i(reference) over the domains that have a weight."""
    sums = np.eye(len(weights))[:, weights > 0]
    offsets = predictor.surface.predict(reference[None])[0] @ sums
    return Objective(
        predictor.surface, sums, offsets, _risk(predictor, sums) if pessimistic else None
    )


def pull_alone(predictor: Predictor) -> Objective:
    """Only the divergence from the reference."""
    return Objective(
        predictor.surface, np.zeros((len(predictor.weights), 1)), np.zeros(1), pull=1.0
    )


def _risk(predictor: Predictor, sums: Array) -> Risk:
    interval = predictor.artifact_model.interval
    beyond = interval.distance(predictor.n_params, predictor.tokens)
    return Risk(predictor.replicates, interval.common(sums, beyond), interval.quantile)

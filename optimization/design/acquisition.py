"""Which mixtures to train next: those where the law is uncertain and the objective is low.

The bootstrap replicates approximate a posterior. For validation domain i and mixture x

    f_i(x) = mean_i(x) + F_i(x) · z_i,    z_i ~ N(0, I_B),

where F_i(x) is the replicates' deviations from their mean / √B. A run at x observes f_i(x) + ε,
ε ~ N(0, σ_i²), in every domain, and conditions z_i in closed form; no law is fitted again. Choosing
a batch treats the domains' z_i as independent, because each domain's law is fitted to its own
losses.

Sources: ALC, the reduction of predictive variance by a new point, averaged over points of interest
(Cohn 1996, Neural Networks 9; Seo et al. 2000, IJCNN); the expected value of sample information
(Raiffa and Schlaifer 1961, Applied Statistical Decision Theory), for a batch of runs followed by
the choice of one mixture: the knowledge gradient (Frazier et al. 2009, INFORMS J. Computing 21).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimization.domain.predictor import Predictor, Surface
from training.record.errors import InputError

Array = np.ndarray

DRAWS = 1024
MARGIN = 0.3  # of near-optimality, in standard deviations of the predicted objective
OUTLYING = 3.0  # robust standard deviations
LEAST_NOISE = 0.05  # share of the mean square error on held-out mixtures
FLOOR = 1e-12  # (nats/token)², of variances in denominators


@dataclass(frozen=True)
class Ensemble:
    """Predictions of a law and its replicates for n candidates, in nats per token."""

    mean: Array  # predicted losses of the candidates, (n, V)
    factors: Array  # deviations of the B replicates / √B, (n, V, B)
    noise: Array  # variance of a run's loss around the law, (V,)
    weights: Array  # of the validation domains, (V,)

    @property
    def objective(self) -> Array:
        """Predicted objective of the candidates, (n,)."""
        return self.mean @ self.weights

    @property
    def objective_factors(self) -> Array:
        """The replicates' deviations in the objective / √B, (n, B)."""
        return np.einsum("nvb,v->nb", self.factors, self.weights)

    @property
    def deviation(self) -> Array:
        """Standard deviation of the candidates' objective, (n,)."""
        return np.sqrt((self.objective_factors**2).sum(axis=1))


@dataclass(frozen=True)
class ExpectedImprovement:
    """The expected improvement by a batch, nats per token of the weighted loss."""

    expected: float
    """Of the mixture chosen after the batch over the one chosen today."""
    most: float
    """The same if the batch revealed the whole law: perfect information."""


def noise(predictor: Predictor) -> Array:
    """Variance of a run's loss around the law, (V,): between seeds, where that was measured, or
    else from the errors on held-out mixtures.

    Those have the interval's residual: their mean square minus the bootstrap's variance. Either
    may be tiny, the difference negative, so at least the share `LEAST_NOISE` of the mean square
    counts as noise.
    """
    measured = getattr(predictor.artifact_model.spec, "noise", ())  # absent in older models
    residual = np.diag(np.asarray(predictor.artifact_model.interval.residual, float))
    fitted = predictor.fitted
    drawn = np.array([surface.predict(fitted) for surface in predictor.replicates])
    shown = drawn.var(axis=0).mean(axis=0)
    least = LEAST_NOISE * (np.maximum(residual, 0) + shown) + FLOOR
    return np.maximum(np.array(measured) if measured else residual, least)


def ensemble(
    surface: Surface, replicates: Sequence[Surface], mixtures: Array, noise: Array, weights: Array
) -> Ensemble:
    """Predictions for candidate mixtures (n, M); noise and weights are (V,).

    With few runs some replicates extrapolate wildly. Deviations from the median are therefore
    clipped at `OUTLYING` robust standard deviations (1.4826 × the median absolute deviation).
    """
    drawn = np.array([replicate.predict(mixtures) for replicate in replicates])  # (B, n, V)
    drawn -= np.median(drawn, axis=0)
    limit = OUTLYING * 1.4826 * np.median(np.abs(drawn), axis=0)
    drawn = np.clip(drawn, -limit, limit)
    factors = np.moveaxis(drawn - drawn.mean(axis=0), 0, 2) / np.sqrt(len(drawn))
    noise, weights = np.asarray(noise, float), np.asarray(weights, float)
    return Ensemble(surface.predict(mixtures), factors, np.maximum(noise, FLOOR), weights)


def probability_near_optimal(candidates: Ensemble, seed: int = 0) -> Array:
    """The probability that each candidate is near-optimal, (n,), scaled to sum to one.

    It is the share of posterior draws in which its objective is at most `MARGIN` standard
    deviations (of the predicted objective over the candidates) above the minimum of that draw.
    """
    objective, factors = candidates.objective, candidates.objective_factors
    z = np.random.default_rng(seed).standard_normal((factors.shape[1], DRAWS))
    drawn = objective[:, None] + factors @ z
    near = (drawn <= drawn.min(axis=0) + MARGIN * objective.std()).mean(axis=1)
    return near / near.sum()


def propose(
    candidates: Ensemble, count: int, pending: Sequence[int] = (), *, seed: int = 0
) -> list[int]:
    """Indices of `count` candidates to train, the most informative first.

    Each step takes the candidate c that reduces Σ_i w_i² Σ_e q_e Var f_i(e) most, where q_e is the
    probability that e is near-optimal. The reduction is

        Σ_i w_i² Σ_e q_e Cov(f_i(c), f_i(e))² / (Var f_i(c) + σ_i²).

    It is summed over domains, because in the sum of the losses errors of several domains cancel.
    `pending` are candidates whose runs are already queued: they count as observed and are not
    chosen. Raises InputError if too few candidates are left.
    """
    left = np.ones(len(candidates.mean), bool)
    left[list(pending)] = False
    if count > left.sum():
        raise InputError(
            f"{count} mixtures are asked for, but only {left.sum()} candidates are not pending; "
            "ask for fewer or give more candidates"
        )
    factors = candidates.factors.transpose(1, 0, 2)  # (V, n, B)
    for index in pending:
        factors = observed(factors, index, candidates.noise)
    q, chosen = probability_near_optimal(candidates, seed), list[int]()
    while len(chosen) < count:
        gain = np.where(left, reduction(factors, candidates, q), -np.inf)
        chosen.append(int(np.argmax(gain)))
        left[chosen[-1]] = False
        factors = observed(factors, chosen[-1], candidates.noise)
    return chosen


def reduction(factors: Array, candidates: Ensemble, probability: Array) -> Array:
    """The reduction of the averaged variance by a run of each candidate, (n,).

    Σ_e q_e Cov(c, e)² is F(c)ᵀ A F(c) with A = Σ_e q_e F(e) F(e)ᵀ, (B, B): no (n, n) matrix.
    """
    averaged = np.matmul(factors.transpose(0, 2, 1) * probability, factors)  # (V, B, B)
    squares = (np.matmul(factors, averaged) * factors).sum(axis=2)  # (V, n)
    variance = (factors**2).sum(axis=2)
    return candidates.weights**2 @ (squares / (variance + candidates.noise[:, None]))


def observed(factors: Array, index: int, noise: Array) -> Array:
    """The factors (V, n, B) that remain after a run of one candidate is observed.

    The posterior covariance I − u uᵀ / s, with u = F(x) and s = |u|² + σ², has the symmetric root
    I − a u uᵀ, a = (1 − √(1 − |u|²/s)) / |u|².
    """
    u = factors[:, index]
    square = (u**2).sum(axis=1)
    root = np.sqrt(noise / (square + noise))
    a = (1 - root) / np.maximum(square, FLOOR**2)
    along = np.matmul(factors, u[:, :, None])  # (V, n, 1)
    return factors - a[:, None, None] * along * u[:, None]


def expected_improvement(
    candidates: Ensemble, batch: Sequence[int], *, seed: int = 0
) -> ExpectedImprovement:
    """The expected improvement of the choice among candidates if those of `batch` are trained.

    Pre-posterior simulation of the objective g(x) = Σ_i w_i f_i(x), whose errors are shared by the
    domains. Each draw of the truth z and of the runs' noise gives a posterior mean after the batch,

        m(x) + Cov(x, batch) (Cov(batch, batch) + σ² I)⁻¹ (g(batch) + ε − m(batch)),

    and the improvement is how far its minimum lies below its value at today's choice. Noise is
    taken as fully shared by the domains, σ = Σ_i w_i σ_i. The form of the law is taken as correct.
    With few runs the replicates differ so much that both values are far too large. On RegMix (17
    domains) they were ten times the measured gain or more from 24 and 32 runs, and within the
    error of twelve replays from 48 runs on.
    """
    mean, factors = candidates.objective, candidates.objective_factors
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((factors.shape[1], DRAWS))
    sigma = float(np.abs(candidates.weights) @ np.sqrt(candidates.noise))
    errors = sigma * rng.standard_normal((len(batch), DRAWS))
    truth = factors @ z
    rows = factors[list(batch)]
    covariance = rows @ rows.T + sigma**2 * np.eye(len(batch))
    change = factors @ rows.T @ np.linalg.solve(covariance, truth[list(batch)] + errors)
    return ExpectedImprovement(_gain(mean, change), _gain(mean, truth))


def _gain(mean: Array, change: Array) -> float:
    """Mean over draws of how far the minimum of mean (n,) + change (n, draws) lies below the
    value at today's choice."""
    today = int(np.argmin(mean))
    drawn = mean[:, None] + change
    return float((drawn[today] - drawn.min(axis=0)).mean())

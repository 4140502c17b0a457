"""Candidate mixtures to train next, and the choice of a batch among them."""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from optimization.design import acquisition, space_filling
from optimization.design.acquisition import Ensemble, ExpectedImprovement
from optimization.domain import objective
from optimization.domain.feasible import ROUNDING, Feasible, distances, tidy
from optimization.domain.predictor import Predictor
from optimization.mixture import sensitivity
from optimization.search.descent import descend

Array = np.ndarray
EVERYWHERE = 2**10  # Sobol points of the allowed set
BETWEEN = 2**8  # of them, moved half way to the best mixture


@dataclass(frozen=True)
class Batch:
    """Candidates, their predictions, and the chosen ones."""

    mixtures: Array  # (n, M)
    ensemble: Ensemble  # predictions of the candidates
    chosen: list[int]  # indices
    best: Array  # the predictor's best mixture, (M,)
    improvement: ExpectedImprovement
    repeated: float | None
    """What as many runs of the best fitted mixture with other seeds are expected to gain, nats per
    token; None if the noise between seeds was not measured."""


def choose(predictor: Predictor, allowed: Feasible, planned: Array, count: int, seed: int) -> Batch:
    """Choose `count` mixtures to train; planned mixtures (p, M) count as trained."""
    with threadpool_limits(1):  # small matrices: more threads only wait for each other
        best, mixtures = _candidates(predictor, allowed, seed)
        seen = np.vstack([predictor.fitted, planned])
        mixtures = mixtures[distances(mixtures, seen).min(axis=1) > ROUNDING]
        unfitted = planned[distances(planned, predictor.fitted).min(axis=1) > ROUNDING]
        every = np.vstack([mixtures, unfitted])
        ensemble = acquisition.ensemble(
            predictor.surface,
            predictor.replicates,
            every,
            acquisition.noise(predictor),
            predictor.weights,
        )
        chosen = acquisition.propose(ensemble, count, range(len(mixtures), len(every)))
        improvement = acquisition.expected_improvement(ensemble, chosen)
        repeated = _repeated(predictor, every, count)
        return Batch(every, ensemble, chosen, best, improvement, repeated)


def _repeated(predictor: Predictor, candidates: Array, count: int) -> float | None:
    """The expected improvement of the choice among candidates by `count` more seeds of the best
    fitted mixture."""
    if not getattr(predictor.artifact_model.spec, "noise", ()):
        return None
    fitted = predictor.fitted
    best = int((predictor.surface.predict(fitted) @ predictor.weights).argmin())
    ensemble = acquisition.ensemble(
        predictor.surface,
        predictor.replicates,
        np.vstack([candidates, fitted[best : best + 1]]),
        acquisition.noise(predictor),
        predictor.weights,
    )
    return acquisition.expected_improvement(ensemble, [len(candidates)] * count).expected


def _candidates(predictor: Predictor, allowed: Feasible, seed: int) -> tuple[Array, Array]:
    """The best mixture, (M,), and candidates, (n, M): points everywhere and half way to the best
    mixture, and the best mixture by each law of the bootstrap."""
    weighted = objective.weighted(predictor, predictor.weights)
    everywhere = space_filling.sobol(allowed, EVERYWHERE, seed)
    best = descend(weighted, allowed, everywhere[weighted(everywhere).argmin()])
    optima, _ = sensitivity.by_replicate(weighted, allowed, best, predictor)
    near = tidy(np.vstack([(everywhere[:BETWEEN] + best) / 2, best[None], optima]), allowed)
    return best, np.unique(np.vstack([everywhere, near]), axis=0)

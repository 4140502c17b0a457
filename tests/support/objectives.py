"""Objectives of a law whose optima are known."""

from dataclasses import replace

import numpy as np

from fitting.artifact.laws import MixingLaw
from optimization.domain.differences import Differences
from optimization.domain.objective import Objective

DOMAINS = ("a", "b", "c", "d")
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
DECAY = 3.0  # of each domain's loss in its own proportion


def own(power: float = 1.0) -> MixingLaw:
    """Each domain helps itself alone: L_i = exp(−DECAY φ(r_i))."""
    count = len(DOMAINS)
    return MixingLaw(
        power, np.zeros(count), np.zeros((count, 1)), -DECAY * np.eye(count)[:, None, :]
    )


def differences_of(objective: Objective, base: np.ndarray) -> Differences:
    """From a base mixture, by laws whose slopes are a tenth steeper and flatter."""
    law = objective.surface
    assert isinstance(law, MixingLaw)
    others = [replace(law, slope=factor * law.slope) for factor in (0.9, 1.1)]
    return Differences(
        objective, base, others, residual=1e-4, residuals=np.full(4, 1e-4), reach=0.3, quantile=1.7
    )

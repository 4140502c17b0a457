"""Choose and weigh laws by what cross-validation says of them, and compare them with others."""

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators.candidates import ALL_METHODS, Candidate, Memory, Stack
from fitting.selection import backtest, boosting, tables
from fitting.selection.backtest import Extrapolation
from fitting.selection.cross_validation import Scores
from fitting.selection.forms import FormSearch, Options
from fitting.selection.parts import Parts
from training.record.errors import InputError

Array = np.ndarray


@dataclass(frozen=True)
class ChosenLaw:
    """The laws that were taken, their weights, and how they compare."""

    stack: Stack
    scores: Scores
    extrapolation: Extrapolation
    held_out: Observations  # each run's last evaluation
    predictions: Array  # for held_out, its mixture left out of fits and weights, (runs, V)
    candidates: pd.DataFrame  # one row per candidate, those taken first
    laws: pd.DataFrame  # one row per law, at its best: see `tables.laws`
    memory: Memory  # of the fits to all observations

    @property
    def best(self) -> Candidate:
        """The candidate with the largest weight."""
        return self.stack.best


def choose(
    observations: Observations,
    weights: Array,
    target: Target,
    options: Options | None = None,
    seed: int = 0,
) -> ChosenLaw:
    """Take the best form of each law and weigh them; tell their errors.

    Of each law φ and ridge are the usual ones (√r, 1e-3), or the nearest to them whose error
    between held-out mixtures (of each domain, relative to its spread) is about the least: of few
    mixtures the best is often the best by chance. The number of exponentials is the smallest whose
    expected error is within one standard error of the least (Breiman et al., 1984). The laws are
    weighed by stacking. weights (V,) sum to one. Raises InputError with fewer than three mixtures.
    """
    options = options or Options()
    search = FormSearch(observations, weights, target, options, seed)
    search.forward_all(options.methods, options)
    if not search.finalists:
        raise InputError("; ".join(search.refused.values()))
    parts = Parts(search)
    stacked = parts.stack()
    misses = [search.backtests(member.candidate) for member in stacked.members]
    extrapolation = backtest.extrapolation(backtest.stacked(misses, stacked.stack.weights), weights)
    boosted = _compare(search) if options.compare else None
    scores = search.cv.score(stacked.predictions)
    return ChosenLaw(
        stack=stacked.stack,
        scores=scores,
        extrapolation=extrapolation,
        held_out=search.cv.held_out,
        predictions=stacked.predictions,
        candidates=tables.candidates(search, stacked.members),
        laws=tables.laws(parts, stacked, scores, extrapolation, boosted),
        memory=search.cv.memory,
    )


def _compare(search: FormSearch) -> tuple[Scores, Extrapolation, float]:
    """Search every other law, as far as it applies; the errors of boosted trees, and seconds."""
    others = [m for m in ALL_METHODS if m not in {**search.seconds, **search.refused}]
    search.forward_all(others, Options())
    began = time.perf_counter()
    scores, tested = boosting.assess(search.cv)
    return scores, tested, time.perf_counter() - began

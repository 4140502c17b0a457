"""Boosted trees, as RegMix (arXiv 2407.01492) regresses: a comparison that knows no law."""

import numpy as np
from threadpoolctl import threadpool_limits

from fitting.data.observations import Observations
from fitting.selection.backtest import Extrapolation, backtest_with, extrapolation
from fitting.selection.cross_validation import CrossValidation, Scores

Array = np.ndarray

TREES, LEARNING_RATE = 100, 0.1
FORM = f"{TREES} histogram-boosted trees on the objective alone"


class Boosted:
    """Trees from mixture, log N and log D to the objective."""

    def __init__(self, observations: Observations, weights: Array) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor  # takes a second to import

        trees = HistGradientBoostingRegressor(
            max_iter=TREES, learning_rate=LEARNING_RATE, random_state=0
        )
        o = observations
        self.domains = len(o.val_domains)
        rows = _columns(o.proportions(), o.n_params, o.tokens)
        with threadpool_limits(1):  # also of what was imported just now
            self.trees = trees.fit(rows, o.losses @ weights)

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array:
        """The objective in every domain's column, (n, V), so that their weighted sum is it."""
        with threadpool_limits(1):
            objective = self.trees.predict(_columns(mixtures, n_params, tokens))
        return np.tile(objective[:, None], self.domains)


def assess(cv: CrossValidation) -> tuple[Scores, Extrapolation]:
    """Errors on held-out mixtures and of extrapolation; those of single domains mean nothing."""
    h = cv.held_out
    predictions = np.empty(h.losses.shape)
    for fold in range(cv.folds):
        train, rows = cv.split(fold)
        trees = Boosted(train, cv.weights)
        predictions[rows] = trees.predict(h.proportions()[rows], h.n_params[rows], h.tokens[rows])
    misses = backtest_with(lambda o: Boosted(o, cv.weights), cv.observations, cv.target)
    return cv.score(predictions), extrapolation(misses, cv.weights)


def _columns(mixtures: Array, n_params: Array, tokens: Array) -> Array:
    return np.column_stack([mixtures, np.log(n_params), np.log(tokens)])

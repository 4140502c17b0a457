"""The 90 % interval of a prediction: bootstrap over mixtures, cross-validation, backtests."""

import numpy as np
from scipy.stats import t as student

from fitting.artifact.laws import Interval
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.selection.backtest import Extrapolation, second_moments
from fitting.selection.choose import ChosenLaw
from fitting.selection.resampling import draws

Array = np.ndarray

PROBABILITY = 0.9
MIN_DISTINCT = 3  # mixtures in a draw


def interval(
    observations: Observations, result: ChosenLaw, weights: Array, target: Target, seed: int = 0
) -> Interval:
    """The interval of the weighted sum of laws.

    Inside the data its mean square is that of the error on held-out mixtures; the bootstrap says
    where it is wider and where narrower. Beyond the data it grows, with the distance on a log
    scale, to what the backtests' moves of the prediction say (`Extrapolation.moments`).
    """
    o = observations
    counts = draws(len(o.mixtures), MIN_DISTINCT, np.random.default_rng(seed))
    laws = tuple(candidates.bootstrap(o, result.stack, target, counts, result.memory))
    h = result.held_out
    drawn = np.array([law.predict(h.proportions(), h.n_params, h.tokens) for law in laws])
    drawn -= drawn.mean(axis=0)
    shown = np.einsum("bri,brj->ij", drawn, drawn) / (len(laws) * len(h.losses))
    n0, d0 = float(o.n_params.max()), float(o.tokens.max())
    extrapolation, varying = _per_distance(result.extrapolation, target, n0, d0, weights)
    return Interval(
        bootstrap=laws,
        residual=second_moments(result.predictions - h.losses) - shown,
        extrapolation=extrapolation,
        varying=varying,
        quantile=float(student.ppf((1 + PROBABILITY) / 2, len(o.mixtures) - 1)),
        n0=n0,
        d0=d0,
    )


def _per_distance(
    tested: Extrapolation, target: Target, n0: float, d0: float, weights: Array
) -> tuple[Array, Array]:
    """Errors of extrapolation a unit of log distance, as second moments (V, V), and the part of
    them in which mixtures differ; those of the backtest with the largest rate where the target is
    inside.

    0 where nothing could be left out: the law then has no term to extrapolate with.
    """
    distance = max(0.0, np.log(target.n_params / n0)) + max(0.0, np.log(target.tokens / d0))
    if not tested.backtests:
        none = np.zeros((len(weights), len(weights)))
        return none, none
    if distance > 0:
        return tested.moments / distance**2, tested.varying / distance**2
    rates = []
    for test in tested.backtests:
        squared = np.log(test.n_params_factor * test.tokens_factor) ** 2
        rates.append((test.error_moments / squared, test.error_varying / squared))
    return max(rates, key=lambda rate: float(weights @ rate[0] @ weights))

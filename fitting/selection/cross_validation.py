"""How well a law predicts mixtures that it has not seen: cross-validation over mixtures."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata
from tqdm import tqdm

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates, joint
from fitting.estimators.candidates import Candidate
from training.record.errors import InputError

Array = np.ndarray

LEAVE_ONE_OUT_UP_TO = 30  # mixtures; beyond, ten folds
FOLDS = 10
MANY, FEWER_FOLDS = 100, 5  # mixtures from which on fewer folds tell as much
MIN_MIXTURES = 3
MIN_RUNS = 4  # of one scale, to compare mixtures at it
ROUNDING = 1e-12  # relative spread of a loss that is the same in all runs
THREADS_FROM = 100  # mixtures; smaller fits spend their time in Python, which threads share


@dataclass(frozen=True)
class Scores:
    """Out-of-fold errors at each run's last evaluation; the objective is Σ w_i L_i."""

    objective_mae: float
    objective_rmse: float
    mixing_rmse: float  # of the objective's differences between mixtures at one scale
    mixing_error: float  # the same of the domains, each relative to its spread
    mean_prediction_mae: float  # of predicting the other mixtures' mean at the same scale
    mean_prediction_rmse: float
    objective_spread: float  # standard deviation of the observed objective
    domain_mae: float  # Σ w_i |error_i|
    spearman: float  # of the objective
    domain_spearman: float  # mean over the validation domains
    r2: float  # of the objective, against predicting the mean


@dataclass(frozen=True)
class HeldOut:
    """What a candidate predicts of mixtures that it has not seen."""

    candidate: Candidate
    predictions: Array  # of each run's last evaluation, (runs, V)
    scores: Scores
    squares: Array  # of the mixing error, mean over each mixture's runs, (m,)


class CrossValidation:
    """Folds over mixtures, the same for every candidate; of many mixtures, in threads."""

    def __init__(
        self, observations: Observations, weights: Array, target: Target, seed: int = 0
    ) -> None:
        count = len(observations.mixtures)
        if count < MIN_MIXTURES:
            raise InputError(
                f"{count} distinct mixtures were trained; a mixing law and its cross-validation "
                f"need at least {MIN_MIXTURES}, and about two more than there are domains to be "
                "good"
            )
        self.observations, self.weights, self.target = observations, weights, target
        self.held_out = observations.rows(observations.last())
        self.fold_of = np.arange(count)
        if count > LEAVE_ONE_OUT_UP_TO:
            folds = FOLDS if count < MANY else FEWER_FOLDS
            self.fold_of = np.random.default_rng(seed).permutation(count) % folds
        self.memory: candidates.Memory = {}
        self._known: list[candidates.Known] = [{} for _ in range(self.folds)]
        h = self.held_out
        self._mean = self._without_mixtures()
        self._scale = _scales(h)
        self._spread = _spread(self._between(h.losses), h.losses)  # of each domain, (V,)

    def run(self, wanted: Sequence[Candidate]) -> list[HeldOut]:
        """Every candidate's predictions of each mixture by a fit without it, and their scores."""
        candidates.fit_all(self.observations, wanted, self.target, self.memory)
        predictions = np.empty((len(wanted), *self.held_out.losses.shape))

        def leave_out(fold: int) -> None:
            train, rows = self.split(fold)
            memory, known = dict(self.memory), self._known[fold]
            laws = candidates.fit_all(train, wanted, self.target, memory, known)
            h = self.held_out
            for i, candidate in enumerate(wanted):
                predictions[i, rows] = laws[candidate].predict(
                    h.proportions()[rows], h.n_params[rows], h.tokens[rows]
                )

        threads = os.cpu_count() if len(self.fold_of) > THREADS_FROM else 1
        doing = f"{wanted[0].method} law, {len(wanted)} candidates"
        with ThreadPoolExecutor(threads) as pool:
            folds = pool.map(leave_out, range(self.folds))
            list(tqdm(folds, doing, self.folds, leave=False, unit=" folds", disable=None))
        return [self.held(*one) for one in zip(wanted, predictions, strict=True)]

    def held(self, candidate: Candidate, predictions: Array) -> HeldOut:
        """A candidate's predictions, (runs, V), and their scores."""
        return HeldOut(candidate, predictions, self.score(predictions), self._squares(predictions))

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold_of.max()) + 1

    def split(self, fold: int) -> tuple[Observations, Array]:
        """What a fold's fit sees, and which rows of `held_out` it predicts, (runs,) bool."""
        others = self.fold_of[self.observations.mixture_of] != fold
        return self.observations.rows(others), self.left_out(fold)

    def left_out(self, fold: int) -> Array:
        """Which rows of `held_out` a fold leaves out, (runs,) bool."""
        return self.fold_of[self.held_out.mixture_of] == fold

    def relative(self, predictions: Array) -> Array:
        """Errors of predictions of each run's last evaluation, (runs, V), relative to the domain's
        spread, each domain by the root of its weight."""
        losses = self.held_out.losses
        return (predictions - losses) / _spread(losses, losses) * np.sqrt(self.weights)

    def domain_squares(self, predictions: Array, rows: slice | Array = slice(None)) -> Array:
        """Mean squared error of each domain between mixtures of a scale, relative to its spread,
        over some rows of `held_out`, (V,)."""
        errors = self._between(predictions - self.held_out.losses) / self._spread
        return np.asarray((errors[rows] ** 2).mean(axis=0))

    def _squares(self, predictions: Array) -> Array:
        """Squared errors between mixtures of a scale, relative to each domain's spread, weighted
        over the domains and averaged over each mixture's runs, (m,)."""
        h = self.held_out
        relative = self._between(predictions - h.losses) / self._spread
        sums = np.bincount(h.mixture_of, relative**2 @ self.weights)
        return sums / np.bincount(h.mixture_of)

    def _between(self, values: Array) -> Array:
        """Values (runs, …) less their mean over the runs of the same scale."""
        sums = np.zeros((self._scale.max() + 1, values.shape[1]))
        np.add.at(sums, self._scale, values)
        return values - (sums / np.bincount(self._scale)[:, None])[self._scale]

    def _without_mixtures(self) -> Array:
        """For each run, what the other folds say of its objective without its mixture, (runs,):
        their mean at its scale; where they have none, the scale terms of a law of one mixture."""
        h, o = self.held_out, self.observations
        objective, folds = h.losses @ self.weights, self.fold_of[h.mixture_of]
        means = np.empty(len(objective))
        for i in range(len(objective)):
            same = (folds != folds[i]) & (h.n_params == h.n_params[i]) & (h.tokens == h.tokens[i])
            means[i] = objective[same].mean() if same.any() else np.nan
        for fold in np.unique(folds[np.isnan(means)]):
            rows = (folds == fold) & np.isnan(means)
            others = o.rows(self.fold_of[o.mixture_of] != fold)
            one = np.zeros_like(others.mixture_of)
            others = replace(others, mixtures=others.mixtures[:1], mixture_of=one)
            scales = joint.fit_scales(others, shrinking=False)
            at = np.zeros(rows.sum(), int), h.n_params[rows], h.tokens[rows]
            means[rows] = scales.predict(*at) @ self.weights
        return means

    def score(self, predictions: Array) -> Scores:
        """The scores of predictions of each run's last evaluation, (runs, V)."""
        h = self.held_out
        observed, predicted = h.losses @ self.weights, predictions @ self.weights
        error, baseline = predicted - observed, self._mean - observed
        between = self._between(error[:, None])[:, 0]
        return Scores(
            objective_mae=float(np.abs(error).mean()),
            objective_rmse=float(np.sqrt((error**2).mean())),
            mixing_rmse=float(np.sqrt((between**2).mean())),
            mixing_error=float(np.sqrt(self._squares(predictions).mean())),
            mean_prediction_mae=float(np.abs(baseline).mean()),
            mean_prediction_rmse=float(np.sqrt((baseline**2).mean())),
            objective_spread=float(observed.std()),
            domain_mae=float((np.abs(predictions - h.losses) @ self.weights).mean()),
            spearman=float(spearman(observed, predicted)),
            domain_spearman=float(spearman(h.losses, predictions).mean()),
            r2=float(1 - (error**2).sum() / max((baseline**2).sum(), 1e-300)),
        )


def _scales(runs: Observations) -> Array:
    """A number for each run's scale, (rows,); scales of fewer than MIN_RUNS runs count as one."""
    scales = np.stack([runs.n_params, runs.tokens])
    _, scale, counts = np.unique(scales, axis=1, return_inverse=True, return_counts=True)
    shared = np.where(counts[scale] >= MIN_RUNS, scale, len(counts))
    return np.unique(shared, return_inverse=True)[1]


def _spread(values: Array, losses: Array) -> Array:
    """Standard deviation of each column of values, (rows, V), made of these losses, (V,); infinite
    where it is only rounding, so that a loss on which no mixture has an effect has no say."""
    spread = values.std(axis=0)
    return np.where(spread > ROUNDING * np.abs(losses).max(axis=0), spread, np.inf)


def spearman(first: Array, second: Array) -> Array:
    """Rank correlation of each column, (n, …) → (…); 0 where one of the two is constant."""
    a, b = rankdata(first, axis=0), rankdata(second, axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.asarray((a * b).sum(axis=0) / np.where(scale > 0, scale, 1.0))

"""Whether a law extrapolates: it is fitted without the end of the data, and predicts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from fitting.artifact.laws import Law
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates, joint
from fitting.estimators.candidates import Candidate
from fitting.selection.resampling import rms

Array = np.ndarray

LAST = 1 / 3  # share of the checkpoints that a backtest in steps leaves out
LARGEST = 0.1  # share of the evaluations that a backtest in size leaves out at least
MIN_MIXTURES = 3
MIN_LENGTHS = 3  # checkpoints that show a step law's three parameters
MOST_CUTS = 8  # starts that are tried for the step law
BOTH = "size and steps"
ONE_BACKTEST = 1 + np.sqrt(0.5)  # an error known from one backtest, and a standard error more


class Fitted(Protocol):
    """Whatever predicts losses, (n, V), of mixtures (n, M) at n_params (n,) and tokens (n,)."""

    def predict(self, mixtures: Array, n_params: Array, tokens: Array) -> Array: ...


@dataclass(frozen=True)
class Backtest:
    """Fitted without a part of the data, the end of the largest runs predicted."""

    name: str  # what was left out: "size", "steps" or "size and steps"
    bias: float  # of the objective, predicted − observed, nats per token
    rmse: float
    n_params_factor: float  # how far beyond the fitted size and tokens it predicted
    tokens_factor: float
    moved: float  # rms change of the objective at the target, over the fitted mixtures
    error_moments: Array  # second moments of the domains' errors, (V, V)
    moved_moments: Array  # and of their changes at the target
    error_varying: Array  # error_moments less those of the mean over the mixtures, (V, V)
    moved_varying: Array  # the same of moved_moments

    def figures(self) -> dict[str, float]:
        """What a metric can hold."""
        return {key: value for key, value in vars(self).items() if isinstance(value, float)}

    @property
    def label(self) -> str:
        """The name as part of a metric's or column's."""
        return self.name.replace(" ", "_")


@dataclass(frozen=True)
class Extrapolation:
    """The backtests of one candidate; empty where there is one size and one length."""

    backtests: tuple[Backtest, ...]

    @property
    def error(self) -> float:
        """Expected error of the objective at the target by extrapolation, nats per token: the root
        of its `moments`."""
        return float(np.sqrt(np.sum([b.moved**2 / 2 for b in self._single])))

    @property
    def moments(self) -> Array:
        """Second moments of the domains' errors by extrapolation to the target, (V, V).

        Half of those of the moves: what the fit without a part of the data says and what the fit to
        all says differ by two errors, of which the second is the smaller one.
        """
        return np.sum([b.moved_moments / 2 for b in self._single], axis=0)

    @property
    def varying(self) -> Array:
        """The part of `moments` in which mixtures differ, (V, V)."""
        return np.sum([b.moved_varying / 2 for b in self._single], axis=0)

    @property
    def blocks(self) -> int:
        """How many parts of the data were left out on their own."""
        return len(self._single)

    def columns(self) -> dict[str, float]:
        """The backtests as columns of a table."""
        return {
            f"backtest_{test.label}_{key}": getattr(test, key)
            for test in self.backtests
            for key in ("bias", "rmse", "moved")
        }

    @property
    def _single(self) -> list[Backtest]:
        """Those that leave out parts of their own; the only one, where there is one."""
        return [b for b in self.backtests if b.name != BOTH] or list(self.backtests)


@dataclass(frozen=True)
class Misses:
    """By how much a law misses what it was fitted without; linear in the law's predictions."""

    name: str
    error: Array  # at the end of the largest runs, predicted − observed, (runs, V)
    moved: Array  # change at the target, over the fitted mixtures, (m, V)
    n_params_factor: float
    tokens_factor: float

    def backtest(self, weights: Array) -> Backtest:
        """Its figures, with the domains' weights (V,) in the objective."""
        return Backtest(
            name=self.name,
            bias=float((self.error @ weights).mean()),
            rmse=rms(self.error @ weights),
            n_params_factor=self.n_params_factor,
            tokens_factor=self.tokens_factor,
            moved=rms(self.moved @ weights),
            error_moments=second_moments(self.error),
            moved_moments=second_moments(self.moved),
            error_varying=_covariance(self.error),
            moved_varying=_covariance(self.moved),
        )


def extrapolation(misses: Sequence[Misses], weights: Array) -> Extrapolation:
    """The backtests of a law."""
    return Extrapolation(tuple(one.backtest(weights) for one in misses))


def stacked(members: Sequence[Sequence[Misses]], weights: Array) -> list[Misses]:
    """What a sum of laws with weights (K, V) misses."""
    return [
        replace(
            tests[0],
            error=np.einsum("kv,knv->nv", weights, [test.error for test in tests]),
            moved=np.einsum("kv,kmv->mv", weights, [test.moved for test in tests]),
        )
        for tests in zip(*members, strict=True)
    ]


def backtest(
    observations: Observations, candidate: Candidate, target: Target, memory: candidates.Memory
) -> list[Misses]:
    """Backtest one candidate, of which `memory` holds a fit."""
    starts = candidates.starts(memory)

    def fit(past: Observations) -> Law:
        return candidates.fit_all(past, [candidate], target, dict(starts))[candidate]

    return backtest_with(fit, observations, target)


def backtest_with(
    fit: Callable[[Observations], Fitted], observations: Observations, target: Target
) -> list[Misses]:
    """Fit without the largest size, without the last third of the checkpoints, without both."""
    o, pasts = observations, _pasts(observations)
    if not pasts:
        return []
    end = o.rows(_largest(o) & o.last())

    def at_target(law: Fitted) -> Array:
        ones = np.ones(len(o.mixtures))
        return law.predict(o.mixtures, target.n_params * ones, target.tokens * ones)

    whole = at_target(fit(o))
    tests = []
    for name, past in pasts.items():
        train = o.rows(past)
        law = fit(train)
        error = law.predict(end.proportions(), end.n_params, end.tokens) - end.losses
        moved = at_target(law) - whole
        factors = (o.n_params.max() / train.n_params.max(), o.tokens.max() / train.tokens.max())
        tests.append(Misses(name, error, moved, float(factors[0]), float(factors[1])))
    return tests


def _pasts(observations: Observations) -> dict[str, Array]:
    """What each backtest fits on, (rows,) bool, by its name."""
    o = observations
    sizes, lengths = np.unique(o.n_params), np.unique(o.tokens)
    found: dict[str, Array] = {}
    if len(sizes) > 1:
        found["size"] = ~_largest(o)
    if len(lengths) > 2:
        found["steps"] = o.tokens <= lengths[int(np.ceil(len(lengths) * (1 - LAST))) - 1]
    if len(found) > 1:
        both = found["size"] & found["steps"]
        if (found["size"] == found["steps"]).all():  # each size has its own length
            found = {}
        found[BOTH] = both
    return {
        name: past
        for name, past in found.items()
        if len(np.unique(o.mixture_of[past])) >= MIN_MIXTURES
    }


def _largest(observations: Observations) -> Array:
    """The rows of the largest size; where that is less than a tenth, of as many as make one, if
    another size is left."""
    n_params = observations.n_params
    least = np.quantile(n_params, 1 - LARGEST, method="lower")
    return n_params >= (least if least > n_params.min() else n_params.max())


def burn_in_cutoff(observations: Observations, weights: Array) -> float:
    """Tokens before which checkpoints are start-up transients that no step law describes.

    The joint law's scale terms, fitted without the last third of the checkpoints, predict that
    third from all earlier ones and from ever fewer of them. As many are kept as predict within
    one standard error of the best, or of the noise; -inf when all are.
    """
    o = observations
    lengths = np.unique(o.tokens)
    end = int(np.ceil(len(lengths) * (1 - LAST)))
    future = o.tokens > lengths[end - 1]
    firsts = np.unique(np.linspace(0, max(0, end - MIN_LENGTHS), MOST_CUTS).astype(int))
    errors, noise = [], []
    for first in firsts if end >= MIN_LENGTHS else ():
        past = (o.tokens >= lengths[first]) & ~future
        if len(np.unique(o.mixture_of[past])) < len(o.mixtures):
            break
        scales = joint.fit_scales(o.rows(past), shrinking=False)
        missed = scales.predict(o.mixture_of, o.n_params, o.tokens) - o.losses
        errors.append(rms(missed[future] @ weights))
        noise.append(rms(missed[past] @ weights))
    if not errors:
        return -np.inf
    least = ONE_BACKTEST * max(min(errors), noise[int(np.argmin(errors))])
    kept = int(np.argmax(np.array(errors) <= least))
    return float(lengths[firsts[kept]]) if kept else -np.inf


def second_moments(values: Array) -> Array:
    """Mean outer product of the rows, (n, V) → (V, V)."""
    return values.T @ values / len(values)


def _covariance(values: Array) -> Array:
    """(n, V) → (V, V)."""
    return second_moments(values - values.mean(axis=0))

"""One fit from beginning to end: transients, repeated text, the laws, their interval, and the
diagnostics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from fitting.artifact.laws import Interval, Law
from fitting.artifact.spec import Target
from fitting.data.observations import Noise, Observations
from fitting.diagnostics import diagnostics, identifiability, interval, optimum
from fitting.diagnostics.diagnostics import Diagnostic
from fitting.diagnostics.optimum import Optimum, Space
from fitting.estimators import candidates, repetition
from fitting.estimators.repetition import RepetitionFit
from fitting.selection import backtest, choose
from fitting.selection.choose import ChosenLaw
from fitting.selection.forms import Options

Array = np.ndarray


@dataclass(frozen=True)
class Fit:
    """Everything that a fit found."""

    observations: Observations  # those that were fitted, as if no text had been repeated
    weights: Array  # (V,)
    target: Target
    choice: ChosenLaw
    law: Law
    interval: Interval
    best: Optimum  # at the target, by the law
    by_size: list[Optimum]  # of each proxy size, by its runs alone
    diagnostics: list[Diagnostic]
    unidentified: list[str]
    noise: Noise | None  # between seeds; None if no run repeats another
    transient: str  # which checkpoints were left out as start-up transients; empty when none
    repetition: RepetitionFit | None  # what repeated text is worth; None if no run repeats a domain
    cpu_seconds: dict[str, float]  # by stage

    def half_width(self, at: Target) -> float:
        """Mean half width of the interval over the fitted mixtures at one scale."""
        mixtures = self.observations.mixtures
        ones = np.ones(len(mixtures))
        return float(
            self.interval.half_width(
                self.weights, mixtures, at.n_params * ones, at.tokens * ones
            ).mean()
        )

    def coverage(self) -> float:
        """The share of held-out runs whose objective lies inside the 90 % interval."""
        h = self.choice.held_out
        error = (self.choice.predictions - h.losses) @ self.weights
        place = h.proportions(), h.n_params, h.tokens
        return float((np.abs(error) <= self.interval.half_width(self.weights, *place)).mean())

    def best_observed(self) -> dict[str, float]:
        """The mixture with the least objective among the longest runs of the largest size."""
        o = self.observations.rows(self.observations.n_params == self.observations.n_params.max())
        o = o.rows(o.tokens == o.tokens.max())
        best = o.proportions()[np.argmin(o.losses @ self.weights)]
        return dict(zip(o.domains, best.round(12).tolist(), strict=True))


def fit(
    observations: Observations,
    weights: Array,
    target: Target,
    options: Options | None = None,
    space: Space | None = None,
    *,
    keep_transients: bool = False,
    repeated: bool = False,
) -> Fit:
    """Choose and weigh the laws, fit them, and find how far they can be trusted.

    weights (V,) sum to one; the best mixture is looked for in the space, by default of all
    mixtures. With `repeated`, what repeated text is worth is fitted too. Raises InputError where no
    law can reach the target.
    """
    identifiability.refuse_unreachable(observations, target)
    identifiability.refuse_constant(observations)
    seconds: dict[str, float] = {}
    transient = ""
    with threadpool_limits(1):  # many small matrices: folds run beside each other instead
        with _timed(seconds, "transients"):
            if not keep_transients:
                observations, transient = _after_burn_in(observations, weights)
        with _timed(seconds, "repetition"):
            worth = None
            if repeated and repetition.repeats(observations):
                worth = repetition.estimate(observations)
                observations = repetition.as_new(observations, worth)
        with _timed(seconds, "choose"):
            choice = choose.choose(observations, weights, target, options)
        with _timed(seconds, "fit"):
            law = candidates.fit(observations, choice.stack, target, dict(choice.memory))
        with _timed(seconds, "interval"):
            spread = interval.interval(observations, choice, weights, target)
        with _timed(seconds, "optimum"):
            space = space or Space.whole(len(observations.domains))
            best = optimum.minimise(law, weights, target, observations.mixtures, space)
            by_size = optimum.by_size(observations, choice.stack, weights, space, choice.memory)
    fitted = Fit(
        observations=observations,
        weights=weights,
        target=target,
        choice=choice,
        law=law,
        interval=spread,
        best=best,
        by_size=by_size,
        diagnostics=[],
        unidentified=identifiability.unidentified(observations, target),
        noise=observations.noise,
        transient=transient,
        repetition=worth,
        cpu_seconds=seconds,
    )
    fitted.diagnostics.extend(_diagnostics(fitted))
    return fitted


def _after_burn_in(observations: Observations, weights: Array) -> tuple[Observations, str]:
    """The observations without the checkpoints of a start-up transient, and which those were."""
    first = backtest.burn_in_cutoff(observations, weights)
    after = observations.tokens >= first
    if after.all():
        return observations, ""
    return observations.rows(after), (
        f"{(~after).sum()} evaluations before {first:,.0f} tokens left out: start-up transients "
        "that spoil the step law, by backtest (min_step=0 keeps them)"
    )


def _diagnostics(fitted: Fit) -> list[Diagnostic]:
    o, choice = fitted.observations, fitted.choice
    inside = fitted.half_width(Target(fitted.interval.n0, fitted.interval.d0))
    found = [
        diagnostics.law_fits(choice.scores),
        *diagnostics.extrapolates(choice.extrapolation, inside),
        diagnostics.optimum_is_near(fitted.best, o),
    ]
    if fitted.noise is not None:
        found.insert(1, diagnostics.noise_floor(fitted.noise, choice.scores, fitted.weights))
    if len(fitted.by_size) > 1:
        found.append(diagnostics.optimum_stays(fitted.best, fitted.by_size, o))
    return found


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.process_time()
    yield
    seconds[stage] = time.process_time() - began

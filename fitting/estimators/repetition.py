"""Find what repeated text is worth, and what the losses would have been without repetition."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from fitting.artifact.laws import PUBLISHED_WORTH as PUBLISHED
from fitting.artifact.laws import JointLaw, Law, RepetitionLaw, effective
from fitting.data.observations import Noise, Observations
from fitting.estimators import joint
from fitting.estimators.joint import ScaleFit
from fitting.estimators.least_squares import Exponentials

Array = np.ndarray

WEAR = (-1.0, 3.0)  # bounds of ρ
LOGS = (np.log(0.05), np.log(5000.0))  # bounds of log R
FAMILIAR = 1.5  # standard deviation of log R around the published value, and …
USUAL_WEAR = 1.0  # … of ρ around 0, before the runs say anything
ALIKE = 0.7  # standard deviation of a domain's log R around that of all
ROUNDS, LAST_ROUNDS = 3, 12  # of the mixture's effect, in turns with the scale terms
STEP = 0.03  # of log R and ρ, for derivatives
DRAWS = 16
PASSES, OF_A_DRAW = 12, 4  # in which the law and the noise are found anew
EVALUATIONS = 5  # of the residuals and their derivatives in a pass, at most
POWER, RIDGE = 0.5, 1e-4  # of the joint law behind it
LEAST_PASSES = 2.0  # over a domain; runs with less tell nothing of it


@dataclass(frozen=True)
class RepetitionFit:
    """What repeated text is worth: R_j = R_j0 (N / n0)^-ρ, as in `RepetitionLaw`."""

    n0: float
    worth: Array  # R_j0, (M,)
    wear: float  # ρ
    drawn: Array  # log R_j0 and ρ of fits to runs drawn with replacement, (DRAWS, M + 1)
    seen: Array  # the most passes over each domain in the runs, (M,)

    def law(self, law: Law, scarcity: Array) -> RepetitionLaw:
        """A law of new text as one of text that may be repeated; scarcity is 1 / U_j, (M,)."""
        return RepetitionLaw(law, self.n0, self.worth, self.wear, scarcity)

    def at(self, n_params: float) -> tuple[Array, Array, Array]:
        """R of each domain at one model size, and the ends of its 90 % interval, (M,) each."""
        log_n = np.log(n_params / self.n0)
        drawn = np.exp(self.drawn[:, :-1] - self.drawn[:, -1:] * log_n)
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        return self.worth * np.exp(-self.wear * log_n), low, high


def published(observations: Observations) -> RepetitionFit:
    """The published value, where no run repeats a domain."""
    domains = len(observations.domains)
    return RepetitionFit(
        n0=float(observations.n_params.max()),
        worth=np.full(domains, PUBLISHED),
        wear=0.0,
        drawn=np.tile(np.append(np.full(domains, np.log(PUBLISHED)), 0.0), (1, 1)),
        seen=passes(observations).max(axis=0, initial=0.0),
    )


def repeats(observations: Observations) -> bool:
    """Whether a run sees a domain often enough to tell what repeated text is worth."""
    return bool((passes(observations) >= LEAST_PASSES).any())


def passes(observations: Observations) -> Array:
    """How often each row has seen each domain's unique tokens, (rows, M)."""
    o = observations
    if o.unique is None:
        return np.zeros((len(o.tokens), len(o.domains)))
    return o.proportions() * o.tokens[:, None] / o.unique


def estimate(observations: Observations, seed: int = 0) -> RepetitionFit:
    """R and ρ by least squares, with the joint law's other parameters solved for at each value.

    A normal prior, whose noise is that of the residuals, holds each domain's log R to the mean of
    all, this mean to the published value, and ρ to 0. The uncertainty is that of runs drawn with
    replacement. Where no run sees a domain LEAST_PASSES times the published value is returned.
    """
    known = published(observations)
    if (known.seen < LEAST_PASSES).all():
        return known
    problem = _Problem(observations, known.seen)
    theta, start, noise = problem.solve(problem.usual)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        counts = np.bincount(
            rng.integers(len(observations.runs), size=len(observations.runs)),
            minlength=len(observations.runs),
        )
        drawn.append(problem.values(problem.solve(theta, counts, start, noise)[0]))
    values = problem.values(theta)
    return replace(known, worth=np.exp(values[:-1]), wear=float(values[-1]), drawn=np.array(drawn))


def law_behind(observations: Observations, repetition: RepetitionFit) -> JointLaw:
    """The joint law of new text that, asked for what repeated text is worth, fits the losses."""
    return _behind(observations, repetition).law


def as_new(observations: Observations, repetition: RepetitionFit) -> Observations:
    """The observations as if all their text had been new: what repetition added is taken off each
    loss, by the joint law."""
    o, fitted = observations, _behind(observations, repetition)
    added = fitted.law.predict(fitted.mixtures, o.n_params, fitted.tokens)
    added -= fitted.law.predict(o.proportions(), o.n_params, o.tokens)
    changed = np.any(passes(o) > 1, axis=1)
    new = replace(o, losses=np.where(changed[:, None], o.losses - added, o.losses))
    return replace(new, noise=Noise.of(new))


def _behind(observations: Observations, repetition: RepetitionFit) -> "_Fitted":
    log_n = np.log(observations.n_params[:, None] / repetition.n0)
    worth = repetition.worth * np.exp(-repetition.wear * log_n)
    return _Problem(observations, repetition.seen).fit(worth, None, None, LAST_ROUNDS)


@dataclass(frozen=True)
class _Fitted:
    """The joint law with one R for each row and domain."""

    law: JointLaw
    scales: ScaleFit
    exponentials: Exponentials
    mixtures: Array  # effective, (rows, M)
    tokens: Array  # effective, (rows,)


class _Problem:
    """Residuals as a function of θ: log R of each domain that a run repeats, and ρ."""

    def __init__(self, observations: Observations, seen: Array) -> None:
        self.observations = o = observations
        self.n0 = float(o.n_params.max())
        self.log_n = np.log(o.n_params / self.n0)
        self.sizes = np.ptp(self.log_n) > 0
        self.domains = len(o.domains)
        self.repeated = np.flatnonzero(seen >= LEAST_PASSES)
        self.usual = np.append(np.full(len(self.repeated), np.log(PUBLISHED)), 0.0)
        assert o.unique is not None
        self.scarcity = 1 / o.unique
        self.alone = len(o.mixtures) == 1

    def values(self, theta: Array) -> Array:
        """log R of each domain, of those that no run repeats the mean of the others, and ρ,
        (M + 1,)."""
        logs = np.full(self.domains, theta[:-1].mean())
        logs[self.repeated] = theta[:-1]
        return np.append(logs, theta[-1])

    def worth(self, theta: Array) -> Array:
        """R of each row and domain, (rows, M)."""
        values = self.values(theta)
        return np.exp(values[:-1] - values[-1] * self.log_n[:, None])

    def fit(
        self, worth: Array, counts: Array | None, start: _Fitted | None, rounds: int = ROUNDS
    ) -> _Fitted:
        """The joint law at one R of each row and domain; counts (runs,) weigh the runs."""
        o = self.observations
        mixtures, tokens = effective(o.proportions(), o.tokens, self.scarcity, worth)
        at_worth = replace(o, tokens=tokens)
        if counts is not None:
            rows = np.repeat(np.arange(len(tokens)), counts[o.run_of])
            at_worth = _taken(at_worth, rows)
        else:
            rows = np.arange(len(tokens))
        fitted = start
        for _ in range(1 if self.alone else rounds):
            losses = o.losses
            if fitted is not None and not self.alone:
                moved = fitted.law.predict(mixtures, o.n_params, tokens)
                losses = losses - moved + fitted.law.predict(o.proportions(), o.n_params, tokens)
            now = replace(at_worth, losses=losses[rows])
            scales = joint.fit_scales(now, shrinking=True, start=fitted.scales if fitted else None)
            ridges = np.full((1, losses.shape[1]), RIDGE)
            taken = (np.bincount(now.mixture_of, minlength=len(now.mixtures)) > 0)[None]
            (law,), exponentials = joint.fit_mixing(
                [scales], now.mixtures, POWER, ridges, fitted.exponentials if fitted else 1,
                taken.astype(float),
            )  # fmt: skip
            fitted = _Fitted(law, scales, exponentials, mixtures, tokens)
        assert fitted is not None
        return fitted

    def solve(
        self,
        theta: Array,
        counts: Array | None = None,
        start: _Fitted | None = None,
        noise: float = 0.0,
    ) -> tuple[Array, _Fitted, float]:
        """The best θ near one, the law there, and the rms residual.

        `noise` is what the prior is weighed by; 0: the residual, found in several passes.
        """
        o = self.observations
        weights = np.ones(len(o.run_of)) if counts is None else counts[o.run_of]
        root = np.sqrt(weights)[:, None]
        state = self.fit(self.worth(theta), counts, start)

        def residual(theta: Array) -> Array:
            found = self.fit(self.worth(theta), counts, state, 1)
            return root * (o.losses - found.law.predict(found.mixtures, o.n_params, found.tokens))

        def rms(theta: Array) -> float:
            mean_square = (residual(theta) ** 2).sum() / max(1.0, weights.sum()) / o.losses.shape[1]
            return max(float(np.sqrt(mean_square)), 1e-6)

        def equations(theta: Array) -> Array:
            prior = (noise or rough) * self._prior(theta)
            return np.concatenate([residual(theta).ravel(), prior])

        def slopes(theta: Array) -> Array:
            here = equations(theta)
            inwards = np.where(theta + STEP > bounds[1], -STEP, STEP)
            moved = [equations(theta + step) - here for step in np.diag(inwards)]
            return np.array(moved).T / inwards

        wear = WEAR if self.sizes else (-1e-9, 1e-9)
        bounds = np.array([*[LOGS] * (len(theta) - 1), wear]).T
        for _ in range(OF_A_DRAW if noise else PASSES):
            rough = noise or rms(theta)
            theta = least_squares(
                equations, theta, slopes, bounds, xtol=1e-3, ftol=1e-6, max_nfev=EVALUATIONS
            ).x
            state = self.fit(self.worth(theta), counts, state)
        return theta, state, rms(theta)

    def _prior(self, theta: Array) -> Array:
        logs, wear = theta[:-1], theta[-1]
        mean = logs.mean()
        return np.array(
            [
                (mean - np.log(PUBLISHED)) / FAMILIAR,
                wear / USUAL_WEAR,
                *((logs - mean) / ALIKE),
            ]
        )


def _taken(observations: Observations, rows: Array) -> Observations:
    """The rows with these indices, of which some may come again; mixtures stay."""
    o = observations
    return replace(
        o,
        mixture_of=o.mixture_of[rows],
        run_of=o.run_of[rows],
        n_params=o.n_params[rows],
        tokens=o.tokens[rows],
        losses=o.losses[rows],
        unique=None if o.unique is None else o.unique[rows],
    )

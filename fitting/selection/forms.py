"""The forms of each law, from simple to flexible: what cross-validation says of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates, published
from fitting.estimators.candidates import MEMBERS, TIES, Candidate
from fitting.selection import backtest
from fitting.selection.backtest import Extrapolation, Misses
from fitting.selection.cross_validation import CrossValidation, HeldOut, Scores
from training.record.errors import InputError

Array = np.ndarray

POWERS = (1.0, 0.7, 0.5, 0.35, 0.0)  # φ(r) = r (paper) … log(r + ε)
RIDGES = tuple(np.geomspace(1e-6, 1.0, 7).tolist())
PUBLISHED_RIDGES = RIDGES[2:]  # weaker ones take the solver several times as long, for little
USUAL_POWER, USUAL_RIDGE = 0.5, 1e-3  # taken unless others are clearly better
FEW = 8  # mixtures; fewer, left out one at a time, say little but of extrapolation
FEW_TOLERANCE = 2.0  # of their rms error, relative to the best's
MAX_TERMS = 3


@dataclass(frozen=True)
class Options:
    """What the user decides of the law; None leaves the choice to cross-validation."""

    methods: tuple[str, ...] = MEMBERS
    power: float | None = None
    ridge: float | None = None
    terms: int | None = None
    shrinking: bool | None = None
    tie: str | None = None
    huber: float | None = None
    compare: bool = True  # whether the other laws are tried too


class FormSearch:
    """The forms tried so far, from simple to flexible, and what is known of each."""

    def __init__(
        self,
        observations: Observations,
        weights: Array,
        target: Target,
        options: Options,
        seed: int,
    ) -> None:
        self.observations, self.weights, self.target = observations, weights, target
        self.options = options
        self.cv = CrossValidation(observations, weights, target, seed)
        self.tried: list[HeldOut] = []
        self.finalists: dict[Candidate, HeldOut] = {}  # form → its best, from simple to flexible
        self.misses: dict[Candidate, list[Misses]] = {}
        self.seconds: dict[str, float] = {}  # by method
        self.refused: dict[str, str] = {}  # method → why it does not apply

    def forward_all(self, methods: Sequence[str], options: Options) -> None:
        """Try several methods; the refusals of those that do not apply are kept."""
        for method in methods:
            try:
                self.forward(method, options)
            except InputError as error:
                self.refused[method] = str(error)

    def forward(self, method: str, options: Options) -> None:
        """Try a method's simplest form, then more exponentials as long as they help."""
        began = time.perf_counter()
        vary = _scales_vary(self.observations)
        if method == "shukor_joint" and not vary and len(options.methods) > 1:
            return  # it is the additive form
        form = _simplest(method, options, shrinking=vary)
        self._walk(form, USUAL_POWER, USUAL_RIDGE, options)
        if method == "joint" and form.shrinking and options.shrinking is None:
            usual = self.finalists[form].candidate
            self._walk(replace(form, shrinking=False), usual.power, usual.ridge, options)
            form = self.chosen((method,)).candidate.form
        while method == "joint" and options.terms is None and form.terms < MAX_TERMS:
            usual = self.finalists[form].candidate
            if not self._may_help(replace(usual, terms=form.terms + 1), usual):
                break
            form = replace(form, terms=form.terms + 1)
            fixed = replace(options, power=usual.power)
            self._walk(form, usual.power, usual.ridge, fixed)
            if self.chosen((method,)).candidate.form != form:
                break
        self.seconds[method] = time.perf_counter() - began

    def chosen(self, methods: Sequence[str] = ()) -> HeldOut:
        """The simplest finalist within one standard error of the best."""
        among = methods or self.options.methods
        held = [h for form, h in self.finalists.items() if form.method in among]
        expected, uncertain = np.array([self.expected_error(h) for h in held]).T
        least = int(np.argmin(expected))
        return held[int(np.argmax(expected <= expected[least] + uncertain[least]))]

    def try_all(self, candidates: Sequence[Candidate]) -> None:
        """Cross-validate candidates of one form; the form's preferred one is a finalist."""
        known = {held.candidate for held in self.tried}
        if new := [c for c in dict.fromkeys(candidates) if c not in known]:
            self.tried.extend(self.cv.run(new))
        form = candidates[0].form
        held = [h for h in self.tried if h.candidate.form == form and not h.candidate.ridges]
        choices = [(h.candidate.power, h.candidate.ridge) for h in held]
        self.finalists[form] = held[preferred(np.array([h.squares for h in held]), choices)]

    def backtests(self, candidate: Candidate) -> list[Misses]:
        """What a candidate misses of the end of the data."""
        if candidate not in self.misses:
            self.misses[candidate] = backtest.backtest(
                self.observations, candidate, self.target, self.cv.memory
            )
        return self.misses[candidate]

    def tested(self, candidate: Candidate) -> Extrapolation:
        """The backtests of a candidate."""
        return backtest.extrapolation(self.backtests(candidate), self.weights)

    def expected_error(self, held: HeldOut) -> tuple[float, float]:
        """As `error`, of what a candidate predicts."""
        return self.error(held.scores, self.tested(held.candidate))

    def error(self, scores: Scores, tested: Extrapolation) -> tuple[float, float]:
        """Expected error of the objective at the target and that error's standard error.

        A mean square of n independent errors has the relative standard error √(2/n).
        """
        o = self.observations
        beyond = self.target.n_params > o.n_params.max() or self.target.tokens > o.tokens.max()
        squares = np.array([scores.objective_rmse, tested.error if beyond else 0.0]) ** 2
        counts = np.array([len(o.mixtures), max(1, tested.blocks)])
        total = np.sqrt(squares.sum())
        uncertain = np.sqrt((2 * squares**2 / counts).sum()) / (2 * max(total, 1e-300))
        return float(total), float(uncertain)

    def _may_help(self, more: Candidate, usual: Candidate) -> bool:
        """Whether another exponential lowers the errors between the fitted mixtures by more than
        its parameters do by chance, by the criterion of G. Schwarz, "Estimating the Dimension of a
        Model", Annals of Statistics 6, 1978; else cross-validation need not be asked."""
        o, h = self.observations, self.cv.held_out
        laws = candidates.fit_all(o, [more, usual], self.target, self.cv.memory)
        squares = [
            self.cv.domain_squares(laws[c].predict(h.proportions(), h.n_params, h.tokens))
            for c in (more, usual)
        ]
        gain = np.log(np.maximum(squares[1], 1e-300) / np.maximum(squares[0], 1e-300))
        count = len(o.mixtures)
        return bool(self.weights @ gain > (1 + len(o.domains)) * np.log(count) / count)

    def _walk(self, form: Candidate, power: float, ridge: float, options: Options) -> None:
        """Cross-validate a form with φ and ridges from the usual ones on, as long as it helps."""
        if form.method in published.METHODS:
            own = ridge if options.ridge is None else options.ridge
            self._while_preferred(replace(form, power=1.0, ridge=own), options)
            return
        best = self._along_ridges(
            replace(
                form,
                power=power if options.power is None else options.power,
                ridge=ridge if options.ridge is None else options.ridge,
            ),
            options,
        )
        while options.power is None:
            others = [with_value(best, "power", p) for p in next_to(best.power, POWERS)]
            least = min([best, *(self._along_ridges(c, options) for c in others)], key=self._mean)
            if least == best:
                break
            best = least

    def _along_ridges(self, candidate: Candidate, options: Options) -> Candidate:
        """The best candidate with another ridge, reached by steps that lower the error."""
        self.try_all([candidate])
        best = candidate
        while options.ridge is None:
            others = beside(best)
            self.try_all(others)
            least = min([best, *others], key=self._mean)
            if least == best:
                break
            best = least
        return best

    def _while_preferred(self, usual: Candidate, options: Options) -> None:
        """Try stronger ridges as long as each is preferred; if none is, weaker ones, which take the
        solver longer."""
        self.try_all([usual])
        for sign in (1, -1) if options.ridge is None else ():
            best = usual
            while ahead := [c for c in beside(best) if sign * (c.ridge - best.ridge) > 0]:
                self.try_all(ahead)
                if self.finalists[usual.form].candidate != ahead[0]:
                    break
                best = ahead[0]
            if best != usual:
                break

    def _mean(self, candidate: Candidate) -> float:
        """The mean squared error of a candidate that was tried."""
        return next(float(h.squares.mean()) for h in self.tried if h.candidate == candidate)


def preferred(squares: Array, choices: Sequence[tuple[float, float]]) -> int:
    """Which choice of φ's power and ridge is taken, by its squared errors over mixtures, (choices,
    m).

    The one nearest to the usual that is about as good as the best: its rms error within one
    standard error of the best's, and not worse by two standard errors of their difference over the
    mixtures. By fewer than FEW mixtures: not worse than FEW_TOLERANCE times the best's.
    """
    mixtures = squares.shape[1]
    means = squares.mean(axis=1)
    worse = squares - squares[int(np.argmin(means))]
    uncertain = worse.std(axis=1, ddof=1) / np.sqrt(mixtures)
    relative = np.sqrt(means / max(means.min(), 1e-300))
    near = relative <= 1 + 1 / np.sqrt(2 * mixtures)
    good = near & (worse.mean(axis=1) <= 2 * uncertain)
    if mixtures < FEW:
        good |= relative <= FEW_TOLERANCE
    tied = np.flatnonzero(good).tolist()

    def unusual(i: int) -> tuple[float, float]:
        power, ridge = choices[i]
        away = abs(np.log10(ridge / USUAL_RIDGE)) if ridge else np.inf
        return float(4 * abs(power - USUAL_POWER) + away), float(means[i])

    return int(min(tied, key=unusual))


def _simplest(method: str, options: Options, *, shrinking: bool) -> Candidate:
    """The first form of a method; the mixture's effect shrinks with scale where scales vary."""
    return Candidate(
        method,
        terms=options.terms or 1,
        shrinking=method == "joint"
        and (shrinking if options.shrinking is None else options.shrinking),
        tie=options.tie or TIES.get(method, ("domain",))[0],
        huber=options.huber or 0.0,
    ).form


def neighbours(power: float) -> list[float]:
    """The powers halfway to those tried beside it."""
    beside = [p for p in POWERS if p != power]
    above = min((p for p in beside if p > power), default=power)
    below = max((p for p in beside if p < power), default=power)
    return [round((power + p) / 2, 3) for p in (above, below) if p != power]


def with_value(candidate: Candidate, name: str, value: float) -> Candidate:
    """The same with another power or ridge."""
    return replace(candidate, power=value) if name == "power" else replace(candidate, ridge=value)


def beside(candidate: Candidate) -> list[Candidate]:
    """The same with the ridges next to its own."""
    ladder = PUBLISHED_RIDGES if candidate.method in published.METHODS else RIDGES
    return [with_value(candidate, "ridge", r) for r in next_to(candidate.ridge, ladder)]


def next_to(value: float, ladder: Sequence[float]) -> list[float]:
    """The values of a ladder next to one."""
    at = min(range(len(ladder)), key=lambda i: abs(ladder[i] - value))
    return [ladder[i] for i in (at - 1, at + 1) if 0 <= i < len(ladder)]


def _scales_vary(observations: Observations) -> bool:
    return bool(np.ptp(observations.n_params) > 0 or np.ptp(observations.tokens) > 0)

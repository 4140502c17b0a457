"""Choose the law: what cross-validation and backtests decide, and how the others compare."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fitting.data.observations import Observations
from fitting.estimators import published
from fitting.estimators.candidates import METHODS, TIES, Candidate, Target
from fitting.selection import backtest, boosting
from fitting.selection.backtest import Extrapolation
from fitting.selection.cross_validation import CrossValidation, HeldOut, Scores
from training.record.errors import InputError

Array = np.ndarray

POWERS = (1.0, 0.7, 0.5, 0.35, 0.0)  # φ(r) = r (paper) … log(r + ε)
RIDGES = tuple(np.geomspace(1e-6, 1.0, 7).tolist())
USUAL_POWER, USUAL_RIDGE = 0.5, 1e-3  # kept unless others are clearly better
FEW = 8  # mixtures; fewer, left out one at a time, say little but of extrapolation
FEW_TOLERANCE = 2.0  # of their rms error, relative to the best's
MAX_TERMS = 3


@dataclass(frozen=True)
class Options:
    """What the user decides of the law; None leaves the choice to cross-validation."""

    methods: tuple[str, ...] = METHODS
    power: float | None = None
    ridge: float | None = None
    terms: int | None = None
    shrinking: bool | None = None
    tie: str | None = None
    huber: float | None = None
    compare: bool = True  # whether the other laws are tried too


@dataclass(frozen=True)
class ChosenLaw:
    """The chosen law and how it compares."""

    best: Candidate
    scores: Scores
    extrapolation: Extrapolation
    held_out: Observations  # each run's last evaluation
    predictions: Array  # of the chosen candidate for held_out, its mixture left out, (runs, V)
    candidates: pd.DataFrame  # a row a candidate, the chosen one first
    laws: pd.DataFrame  # a row a law, at its best: see `_Comparison.laws`


def choose(
    observations: Observations,
    weights: Array,
    target: Target,
    options: Options | None = None,
    seed: int = 0,
) -> ChosenLaw:
    """Choose the law and tell its expected error at the target.

    φ and ridge are the usual ones (√r, 1e-3), or the nearest to them whose error between left-out
    mixtures (of each domain, relative to its spread) is about the least: of few mixtures the best
    is often the best by chance. The form (method, number of
    exponentials, ties, shrinking) is the simplest whose expected error is within one standard
    error of the least (Breiman et al., 1984); that error joins the one on left-out mixtures and,
    where the target lies outside the data, the one of extrapolation. weights (V,) sum to one.
    Raises InputError with fewer than three mixtures.
    """
    search = _Comparison(observations, weights, target, options or Options(), seed)
    for method in search.options.methods:
        search.forward(method, search.options)
    best = search.refine(search.chosen().candidate.form)
    if search.options.compare:
        search.compare()
    return ChosenLaw(
        best=best.candidate,
        scores=best.scores,
        extrapolation=search.tested[best.candidate],
        held_out=search.cv.held_out,
        predictions=best.predictions,
        candidates=search.candidates(best),
        laws=search.laws(best),
    )


class _Comparison:
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
        self.tested: dict[Candidate, Extrapolation] = {}
        self.seconds: dict[str, float] = {}  # by method
        self.refused: dict[str, str] = {}  # method → why it does not apply
        self.boosted: tuple[Scores, Extrapolation] | None = None
        self.seconds_boosting = 0.0

    def forward(self, method: str, options: Options) -> None:
        """Try a method's simplest form, then vary one choice at a time while that helps."""
        began = time.perf_counter()
        form, power = _simplest(method, options), options.power
        self._try(_grid(form, power, options.ridge))
        seen = {form}
        while True:
            power = self.finalists[form].candidate.power if options.power is None else power
            variations = [f for f in self._variations(form, options) if f not in seen]
            for variation in variations:
                self._try(_grid(variation, power, options.ridge))
            seen.update(variations)
            best = self.chosen((method,)).candidate.form
            if best == form:
                break
            form = best
        self.seconds[method] = time.perf_counter() - began

    def refine(self, form: Candidate) -> HeldOut:
        """The best of a form, with powers of φ halfway to those tried beside its own."""
        began = time.perf_counter()
        if self.options.power is None and form.method in METHODS:
            for between in _neighbours(self.finalists[form].candidate.power):
                self._try(_grid(form, between, self.options.ridge))
        self.seconds[form.method] += time.perf_counter() - began
        return self.finalists[form]

    def compare(self) -> None:
        """Try every other law, as far as it applies."""
        for method in (*METHODS, *published.METHODS):
            if method not in self.seconds:
                try:
                    self.forward(method, Options())
                except InputError as error:
                    self.refused[method] = str(error)
        began = time.perf_counter()
        self.boosted = boosting.assess(self.cv)
        self.seconds_boosting = time.perf_counter() - began

    def chosen(self, methods: Sequence[str] = ()) -> HeldOut:
        """The simplest finalist within one standard error of the best."""
        among = methods or self.options.methods
        held = [h for form, h in self.finalists.items() if form.method in among]
        expected, uncertain = np.array([self._expected(h) for h in held]).T
        least = int(np.argmin(expected))
        return held[int(np.argmax(expected <= expected[least] + uncertain[least]))]

    def _try(self, grid: Sequence[Candidate]) -> None:
        """Cross-validate candidates of one form and backtest the form's preferred one."""
        self.tried.extend(self.cv.run(grid))
        form = grid[0].form
        held = [one for one in self.tried if one.candidate.form == form]
        choices = [(one.candidate.power, one.candidate.ridge) for one in held]
        best = held[preferred(np.array([one.squares for one in held]), choices)]
        self.finalists[form] = best
        if best.candidate not in self.tested:
            self.tested[best.candidate] = backtest.backtest(
                self.observations, best.candidate, self.weights, self.target, self.cv.memory
            )

    def _variations(self, form: Candidate, options: Options) -> list[Candidate]:
        """The forms that differ from one in a choice that is left open and matters here."""
        if form.method != "joint":
            return []
        found = []
        if _scales_vary(self.observations):
            if options.shrinking is None:
                found.append(replace(form, shrinking=True))
            if options.tie is None:
                found.append(replace(form, tie="domain"))
        if options.terms is None and form.terms < MAX_TERMS:
            found.append(replace(form, terms=form.terms + 1))
        return found

    def _expected(self, held: HeldOut) -> tuple[float, float]:
        """Expected error of the objective at the target and that error's standard error.

        A mean square of n independent errors has the relative standard error √(2/n).
        """
        o, tested = self.observations, self.tested[held.candidate]
        beyond = self.target.n_params > o.n_params.max() or self.target.tokens > o.tokens.max()
        squares = np.array([held.scores.objective_rmse, tested.error if beyond else 0.0]) ** 2
        counts = np.array([len(o.mixtures), max(1, tested.blocks)])
        total = np.sqrt(squares.sum())
        uncertain = np.sqrt((2 * squares**2 / counts).sum()) / (2 * max(total, 1e-300))
        return float(total), float(uncertain)

    def laws(self, best: HeldOut) -> pd.DataFrame:
        """Law, expected error at the target, errors on left-out mixtures and of extrapolation
        (fitted without the largest size and the last checkpoints, as far as there are others; the
        objective's unless named otherwise), seconds, note."""
        rows: list[dict[str, Any]] = []
        for method in self.seconds:
            held = best if method == best.candidate.method else self.chosen((method,))
            rows.append(
                {
                    "law": method,
                    "chosen": held is best,
                    **_errors(held.scores, self.tested[held.candidate]),
                    "expected_error": self._expected(held)[0],
                    "seconds": self.seconds[method],
                    "form": str(held.candidate),
                }
            )
        if self.boosted:
            errors = {**_errors(*self.boosted), "held_out_domain_mae": np.nan}
            seconds = self.seconds_boosting
            rows.append({"law": "boosting", **errors, "seconds": seconds, "form": boosting.FORM})
        rows.extend({"law": method, "note": why} for method, why in self.refused.items())
        table = pd.DataFrame(rows)
        return table.assign(chosen=table["chosen"].eq(True))

    def candidates(self, best: HeldOut) -> pd.DataFrame:
        """A row a candidate; the best of each form has an expected error and backtests."""
        expected = {held.candidate: self._expected(held)[0] for held in self.finalists.values()}
        rows = []
        for held in self.tried:
            tested = self.tested.get(held.candidate, Extrapolation(()))
            rows.append(
                {
                    **vars(held.candidate),
                    "chosen": held is best,
                    "expected_error": expected.get(held.candidate, np.nan),
                    **vars(held.scores),
                    **tested.columns(),
                }
            )
        table = pd.DataFrame(rows)
        return table.sort_values(["chosen", "expected_error"], ascending=[False, True])


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


def _errors(scores: Scores, tested: Extrapolation) -> dict[str, float]:
    furthest = tested.backtests[-1] if tested.backtests else None
    return {
        "held_out_mae": scores.objective_mae,
        "held_out_rmse": scores.objective_rmse,
        "held_out_domain_mae": scores.domain_mae,
        "spearman": scores.spearman,
        "extrapolation_rmse": furthest.rmse if furthest else np.nan,
        "extrapolation_bias": furthest.bias if furthest else np.nan,
    }


def _simplest(method: str, options: Options) -> Candidate:
    return Candidate(
        method,
        terms=options.terms or 1,
        shrinking=options.shrinking or False,
        tie=options.tie or TIES.get(method, ("domain",))[0],
        huber=options.huber or 0.0,
    ).form


def _grid(form: Candidate, power: float | None, ridge: float | None) -> list[Candidate]:
    if form.method in published.METHODS:
        return [replace(form, power=1.0, ridge=published.RIDGE if ridge is None else ridge)]
    powers = POWERS if power is None else (power,)
    ridges = RIDGES if ridge is None else (ridge,)
    return [replace(form, power=p, ridge=r) for p in powers for r in ridges]


def _neighbours(power: float) -> list[float]:
    """The powers halfway to those tried beside it."""
    beside = [p for p in POWERS if p != power]
    above = min((p for p in beside if p > power), default=power)
    below = max((p for p in beside if p < power), default=power)
    return [round((power + p) / 2, 3) for p in (above, below) if p != power]


def _scales_vary(observations: Observations) -> bool:
    return bool(np.ptp(observations.n_params) > 0 or np.ptp(observations.tokens) > 0)

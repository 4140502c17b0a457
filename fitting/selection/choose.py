"""Choose and weigh laws by what cross-validation says of them, and compare them with others."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates, published
from fitting.estimators.candidates import MEMBERS, OWN, TIES, Candidate, Memory, Stack
from fitting.selection import backtest, boosting, stacking
from fitting.selection.backtest import Extrapolation, Misses
from fitting.selection.cross_validation import CrossValidation, HeldOut, Scores
from training.record.errors import InputError

Array = np.ndarray

POWERS = (1.0, 0.7, 0.5, 0.35, 0.0)  # φ(r) = r (paper) … log(r + ε)
RIDGES = tuple(np.geomspace(1e-6, 1.0, 7).tolist())
USUAL_POWER, USUAL_RIDGE = 0.5, 1e-3  # kept unless others are clearly better
FEW = 8  # mixtures; fewer, left out one at a time, say little but of extrapolation
FEW_TOLERANCE = 2.0  # of their rms error, relative to the best's
MAX_TERMS = 3
SHARED = 20  # mixtures' worth of what all domains say of φ and ridge, beside a domain's own


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


@dataclass(frozen=True)
class ChosenLaw:
    """The laws that were taken, their weights, and how they compare."""

    stack: Stack
    scores: Scores
    extrapolation: Extrapolation
    held_out: Observations  # each run's last evaluation
    predictions: Array  # for held_out, its mixture left out of fits and weights, (runs, V)
    candidates: pd.DataFrame  # a row a candidate, those taken first
    laws: pd.DataFrame  # a row a law, at its best: see `_Comparison.laws`
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
    between left-out mixtures (of each domain, relative to its spread) is about the least: of few
    mixtures the best is often the best by chance. The number of exponentials is the smallest whose
    expected error is within one standard error of the least (Breiman et al., 1984). The laws are
    weighed by stacking. weights (V,) sum to one. Raises InputError with fewer than three mixtures.
    """
    search = _Comparison(observations, weights, target, options or Options(), seed)
    search.forward_all(search.options.methods, search.options)
    if not search.finalists:
        raise InputError("; ".join(search.refused.values()))
    stack, members, predictions = search.stack()
    misses = [search.backtests(member.candidate) for member in members]
    stacked = backtest.stacked(misses, stack.weights)
    if search.options.compare:
        search.compare()
    scores, extrapolation = search.cv.score(predictions), backtest.extrapolation(stacked, weights)
    return ChosenLaw(
        stack=stack,
        scores=scores,
        extrapolation=extrapolation,
        held_out=search.cv.held_out,
        predictions=predictions,
        candidates=search.candidates(members),
        laws=search.laws(stack, members, scores, extrapolation),
        memory=search.cv.memory,
    )


@dataclass(frozen=True)
class _Part:
    """What a method adds to a stack."""

    members: tuple[HeldOut, ...]
    taken: Array  # which member each validation domain takes, (members, V) bool
    tried: tuple[HeldOut, ...]  # what the domains chose among


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
        self.parts: dict[str, _Part] = {}  # by method, of what is weighed
        self.finalists: dict[Candidate, HeldOut] = {}  # form → its best, from simple to flexible
        self.misses: dict[Candidate, list[Misses]] = {}
        self.seconds: dict[str, float] = {}  # by method
        self.refused: dict[str, str] = {}  # method → why it does not apply
        self.boosted: tuple[Scores, Extrapolation] | None = None
        self.seconds_boosting = 0.0

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

    def part(self, method: str) -> "_Part":
        """A method's part in the stack: one form; where φ and ridge are to be chosen, each domain
        takes its own ridge, and in a sum of laws its own of two φ."""
        began = time.perf_counter()
        best, options, domains = self.chosen((method,)), self.options, len(self.weights)
        part = _Part((best,), np.ones((1, domains), bool), (best,))
        if method in OWN and options.ridge is None and domains > 1:
            powers = [best.candidate.power]
            if options.power is None and len(options.methods) > 1:
                powers.append(self._second_power(best.candidate))
            part = self._by_domain(best, powers)
        self.seconds[method] += time.perf_counter() - began
        return part

    def _second_power(self, best: Candidate) -> float:
        """The power besides the best candidate's that lowers the domains' errors the most, where
        each domain takes the better of the two."""
        between = _neighbours(best.power)
        self._try([_with(best, "power", power) for power in between])
        least = self._least_squares(best.form)
        own = least.pop(best.power)
        return min(least, key=lambda p: float(np.mean(np.minimum(own, least[p]) / own)))

    def _least_squares(self, form: Candidate) -> dict[float, Array]:
        """Power → the least squared error of each domain over the ridges tried, (V,)."""
        found: dict[float, Array] = {}
        for held in self.tried:
            if held.candidate.form == form and not held.candidate.ridges:
                squares = self.cv.domain_squares(held.predictions)
                power = held.candidate.power
                found[power] = np.minimum(found.get(power, np.inf), squares).clip(1e-300)
        return found

    def _by_domain(self, best: HeldOut, powers: Sequence[float]) -> "_Part":
        """For each power a candidate with a ridge for each domain, and which each domain takes; the
        best candidate alone, where that is not worse."""
        form, same = best.candidate.form, set(powers)
        for power in powers:
            usual = replace(best.candidate, power=power)
            beside = _beside(usual.ridge, RIDGES)
            self._try([usual, *(_with(usual, "ridge", ridge) for ridge in beside)])
        tried = [
            h
            for h in self.tried
            if h.candidate.form == form and h.candidate.power in same and not h.candidate.ridges
        ]
        if len(tried) == 1 or self._worse_by_domain(tried):
            return _Part((best,), np.ones((1, len(self.weights)), bool), (best,))
        cost = self._cost(tried)
        taken_power = np.array([tried[i].candidate.power for i in cost.argmin(axis=0)])
        members = []
        for power in powers:
            line = [i for i, h in enumerate(tried) if h.candidate.power == power]
            picks = [tried[line[i]] for i in cost[line].argmin(axis=0)]
            own = replace(
                best.candidate, power=power, ridges=tuple(h.candidate.ridge for h in picks)
            )
            predictions = np.stack([h.predictions[:, v] for v, h in enumerate(picks)], axis=1)
            members.append(self.cv.held(own, predictions))
        self.tried.extend(members)
        taken = np.array([taken_power == power for power in powers])
        return _Part(tuple(members), taken, tuple(tried))

    def _worse_by_domain(self, tried: Sequence[HeldOut]) -> bool:
        """Whether the domains' own choices predict runs that have no say in them worse than one
        choice for all domains does."""

        def same(rows: Array) -> Array:
            return tried[int(self._cost(tried, rows).mean(axis=1).argmin())].predictions

        own, shared = (
            self.cv.score(self._crossed(predict)).mixing_error
            for predict in (lambda rows: self._picked(tried, rows), same)
        )
        return own > shared

    def _picked(self, tried: Sequence[HeldOut], rows: slice | Array) -> Array:
        """What is predicted of all runs where each domain chooses by some rows, (runs, V)."""
        columns = np.arange(len(self.weights))
        every = np.array([h.predictions for h in tried])
        return np.asarray(every[self._cost(tried, rows).argmin(axis=0), :, columns].T)

    def _crossed(self, predict: Callable[[Array], Array]) -> Array:
        """Of each fold's runs what `predict` makes of the other folds' rows, (runs, V)."""
        predictions = np.empty_like(self.cv.held_out.losses)
        for fold in range(self.cv.folds):
            left_out = self.cv.left_out(fold)
            predictions[left_out] = predict(np.flatnonzero(~left_out))[left_out]
        return predictions

    def _cost(self, tried: Sequence[HeldOut], rows: slice | Array = slice(None)) -> Array:
        """What speaks against each of several choices for each domain, (choices, V), by its errors
        on some rows: the domain's and the mean of all, each relative to its least; that mean counts
        like SHARED mixtures."""
        squares = np.array([self.cv.domain_squares(h.predictions, rows) for h in tried])
        own = squares / np.maximum(squares.min(axis=0), 1e-300)
        shared = own.mean(axis=1, keepdims=True)
        mixtures = len(self.observations.mixtures)
        return np.asarray(mixtures * own + SHARED * shared / max(float(shared.min()), 1e-300))

    def _weighed(self, rows: slice | Array) -> tuple[Array, Array]:
        """The weights of the methods by their errors on some rows, (methods, V), and what their
        sum predicts of all runs, with the choices that those rows make, (runs, V)."""
        parts = self.parts.values()
        predictions = np.array([self._picked(part.tried, rows) for part in parts])
        errors = np.array([self.cv.relative(predicted) for predicted in predictions])
        shares = stacking.weights(errors[:, rows], self.cv.held_out.mixture_of[rows])
        return shares, np.einsum("kv,knv->nv", shares, predictions)

    def stack(self) -> tuple[Stack, list[HeldOut], Array]:
        """The weighted sum of what was tried; its members: those that have a weight; and what it
        predicts of each run's last evaluation, (runs, V).

        That run's errors have no say in the weights, φ and ridges with which it is predicted.
        """
        self.parts = {method: self.part(method) for method in self.seconds}
        shares, _ = self._weighed(slice(None))
        predictions = self._crossed(lambda rows: self._weighed(rows)[1])
        every = [held for part in self.parts.values() for held in part.members]
        weights = np.vstack(
            [s * part.taken for s, part in zip(shares, self.parts.values(), strict=True)]
        )
        weighty = np.flatnonzero(weights.any(axis=1))
        members = [every[i] for i in weighty]
        stack = Stack(tuple(held.candidate for held in members), weights[weighty])
        return stack, members, predictions

    def forward_all(self, methods: Sequence[str], options: Options) -> None:
        """Try several methods; the refusals of those that do not apply are kept."""
        for method in methods:
            try:
                self.forward(method, options)
            except InputError as error:
                self.refused[method] = str(error)

    def compare(self) -> None:
        """Try every other law, as far as it applies."""
        others = [
            m for m in (*OWN, *published.METHODS) if m not in {**self.seconds, **self.refused}
        ]
        self.forward_all(others, Options())
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

    def _walk(self, form: Candidate, power: float, ridge: float, options: Options) -> None:
        """Cross-validate a form with φ and ridges from the usual ones on, as long as it helps."""
        if form.method in published.METHODS:
            own = published.RIDGE if options.ridge is None else options.ridge
            self._try([replace(form, power=1.0, ridge=own)])
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
            beside = [_with(best, "power", p) for p in _beside(best.power, POWERS)]
            least = min([best, *(self._along_ridges(c, options) for c in beside)], key=self._mean)
            if least == best:
                break
            best = least

    def _along_ridges(self, candidate: Candidate, options: Options) -> Candidate:
        """The best candidate with another ridge, reached by steps that lower the error."""
        self._try([candidate])
        best = candidate
        while options.ridge is None:
            beside = [_with(best, "ridge", r) for r in _beside(best.ridge, RIDGES)]
            self._try(beside)
            least = min([best, *beside], key=self._mean)
            if least == best:
                break
            best = least
        return best

    def _mean(self, candidate: Candidate) -> float:
        """The mean squared error of a candidate that was tried."""
        return next(float(h.squares.mean()) for h in self.tried if h.candidate == candidate)

    def _try(self, candidates: Sequence[Candidate]) -> None:
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

    def _expected(self, held: HeldOut) -> tuple[float, float]:
        """As `_error`, of a candidate that was backtested."""
        return self._error(held.scores, self.tested(held.candidate))

    def _error(self, scores: Scores, tested: Extrapolation) -> tuple[float, float]:
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

    def laws(
        self, stack: Stack, members: Sequence[HeldOut], scores: Scores, tested: Extrapolation
    ) -> pd.DataFrame:
        """Law, its weight in the prediction, expected error at the target, errors on left-out
        mixtures and of extrapolation (fitted without the largest size and the last checkpoints, as
        far as there are others; the objective's unless named otherwise), seconds, note."""
        shares: dict[str, float] = defaultdict(float)
        for member, weight in zip(members, stack.shares, strict=True):
            shares[member.candidate.method] += weight
        rows: list[dict[str, Any]] = []
        if len(members) > 1:
            expected = self._error(scores, tested)[0]
            errors = {**_errors(scores, tested), "expected_error": expected, "weight": 1.0}
            rows.append({"law": "stack", "chosen": True, **errors, "form": str(stack)})
        for method in self.seconds:
            held = self.chosen((method,))
            of_law, beyond = held.scores, self.tested(held.candidate)
            if part := self.parts.get(method):
                held = part.members[0]
                of_law, beyond = self._of_part(part)
            rows.append(
                {
                    "law": method,
                    "chosen": len(members) == 1 and shares[method] > 0,
                    "weight": shares[method],
                    **_errors(of_law, beyond),
                    "expected_error": self._error(of_law, beyond)[0],
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

    def _of_part(self, part: "_Part") -> tuple[Scores, Extrapolation]:
        """The errors of a method whose members each predict some of the domains."""
        taken = part.taken.astype(float)
        predictions = np.einsum("kv,knv->nv", taken, [h.predictions for h in part.members])
        misses = backtest.stacked([self.backtests(h.candidate) for h in part.members], taken)
        return self.cv.score(predictions), backtest.extrapolation(misses, self.weights)

    def candidates(self, members: Sequence[HeldOut]) -> pd.DataFrame:
        """A row a candidate; the best of each form has an expected error and backtests."""
        expected = {held.candidate: self._expected(held)[0] for held in self.finalists.values()}
        rows = []
        for held in self.tried:
            misses = self.misses.get(held.candidate, [])
            tested = backtest.extrapolation(misses, self.weights)
            rows.append(
                {
                    **vars(held.candidate),
                    "chosen": any(held is member for member in members),
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


def _neighbours(power: float) -> list[float]:
    """The powers halfway to those tried beside it."""
    beside = [p for p in POWERS if p != power]
    above = min((p for p in beside if p > power), default=power)
    below = max((p for p in beside if p < power), default=power)
    return [round((power + p) / 2, 3) for p in (above, below) if p != power]


def _with(candidate: Candidate, name: str, value: float) -> Candidate:
    """The same with another power or ridge."""
    return replace(candidate, power=value) if name == "power" else replace(candidate, ridge=value)


def _beside(value: float, ladder: Sequence[float]) -> list[float]:
    """The values of a ladder next to one."""
    at = min(range(len(ladder)), key=lambda i: abs(ladder[i] - value))
    return [ladder[i] for i in (at - 1, at + 1) if 0 <= i < len(ladder)]


def _scales_vary(observations: Observations) -> bool:
    return bool(np.ptp(observations.n_params) > 0 or np.ptp(observations.tokens) > 0)

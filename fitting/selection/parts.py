"""What each law adds to a weighted sum: choices of φ and ridge by validation domain."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fitting.estimators.candidates import OWN, Candidate, Stack
from fitting.selection import backtest, stacking
from fitting.selection.backtest import Extrapolation
from fitting.selection.cross_validation import HeldOut, Scores
from fitting.selection.forms import FormSearch, beside, neighbours, with_value

Array = np.ndarray

SHARED = 20  # mixtures' worth of what all domains say of φ and ridge, beside a domain's own


@dataclass(frozen=True)
class Part:
    """What a method adds to a stack."""

    members: tuple[HeldOut, ...]
    taken: Array  # which member each validation domain takes, (members, V) bool
    tried: tuple[HeldOut, ...]  # what the domains chose among


@dataclass(frozen=True)
class Stacked:
    """A weighted sum of what was searched."""

    stack: Stack
    members: tuple[HeldOut, ...]  # with a weight
    predictions: Array  # of each run's last evaluation, (runs, V), made with fits, weights, φ and
    # ridges in which the run's mixture has no say


class Parts:
    """The parts of a stack, one for each method that was searched, and their weights."""

    def __init__(self, search: FormSearch) -> None:
        self.search, self.cv, self.weights = search, search.cv, search.weights
        self.of = {method: self._part(method) for method in search.seconds}

    def stack(self) -> Stacked:
        """The weighted sum of the parts."""
        shares, _ = self._weighed(slice(None))
        every = [held for part in self.of.values() for held in part.members]
        weights = np.vstack(
            [share * part.taken for share, part in zip(shares, self.of.values(), strict=True)]
        )
        weighty = np.flatnonzero(weights.any(axis=1))
        members = tuple(every[i] for i in weighty)
        return Stacked(
            Stack(tuple(held.candidate for held in members), weights[weighty]),
            members,
            self._crossed(lambda rows: self._weighed(rows)[1]),
        )

    def errors(self, method: str) -> tuple[Scores, Extrapolation]:
        """Those of a method on held-out mixtures and of extrapolation; of a method without a part,
        those of its best form."""
        if method not in self.of:
            best = self.search.chosen((method,))
            return best.scores, self.search.tested(best.candidate)
        part = self.of[method]
        taken = part.taken.astype(float)
        misses = [self.search.backtests(held.candidate) for held in part.members]
        stacked = backtest.stacked(misses, taken)
        scores = self.cv.score(self._crossed(lambda rows: self._picked(part.tried, rows)))
        return scores, backtest.extrapolation(stacked, self.weights)

    def form(self, method: str) -> str:
        """A method's form in words; where domains choose among two, both."""
        if method in self.of:
            part = self.of[method]
            members = zip(part.members, part.taken, strict=True)
            return " or, by domain, ".join(str(m.candidate) for m, taken in members if taken.any())
        return str(self.search.chosen((method,)).candidate)

    def _weighed(self, rows: slice | Array) -> tuple[Array, Array]:
        """The weights of the methods by their errors on some rows, (methods, V), and what their
        sum predicts of all runs, with the choices that those rows make, (runs, V)."""
        parts = self.of.values()
        predictions = np.array([self._picked(part.tried, rows) for part in parts])
        errors = np.array([self.cv.relative(predicted) for predicted in predictions])
        shares = stacking.weights(errors[:, rows], self.cv.held_out.mixture_of[rows])
        return shares, np.einsum("kv,knv->nv", shares, predictions)

    def _part(self, method: str) -> Part:
        """A method's part in the stack: one form; where the ridge is to be chosen, each domain
        takes its own, and in a sum of laws its own of two φ, where the law has one."""
        began = time.perf_counter()
        best, options, domains = (
            self.search.chosen((method,)),
            self.search.options,
            len(self.weights),
        )
        part = Part((best,), np.ones((1, domains), bool), (best,))
        if options.ridge is None and domains > 1:
            powers = [best.candidate.power]
            if method in OWN and options.power is None and len(options.methods) > 1:
                powers.append(self._second_power(best.candidate))
            part = self._by_domain(best, powers)
        self.search.seconds[method] += time.perf_counter() - began
        return part

    def _second_power(self, best: Candidate) -> float:
        """The power besides the best candidate's that lowers the domains' errors the most, where
        each domain takes the better of the two."""
        between = neighbours(best.power)
        self.search.try_all([with_value(best, "power", power) for power in between])
        least = self._least_squares(best.form)
        own = least.pop(best.power)
        return min(least, key=lambda p: float(np.mean(np.minimum(own, least[p]) / own)))

    def _by_domain(self, best: HeldOut, powers: Sequence[float]) -> Part:
        """For each power a candidate with a ridge for each domain, and which each domain takes; the
        best candidate alone, where that is not worse."""
        form, same = best.candidate.form, set(powers)
        for power in powers:
            usual = replace(best.candidate, power=power)
            self.search.try_all([usual, *beside(usual)])
        tried = [
            h
            for h in self.search.tried
            if h.candidate.form == form and h.candidate.power in same and not h.candidate.ridges
        ]
        if len(tried) == 1 or self._worse_by_domain(tried):
            return Part((best,), np.ones((1, len(self.weights)), bool), (best,))
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
        self.search.tried.extend(members)
        taken = np.array([taken_power == power for power in powers])
        return Part(tuple(members), taken, tuple(tried))

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
        mixtures = len(self.search.observations.mixtures)
        return np.asarray(mixtures * own + SHARED * shared / max(float(shared.min()), 1e-300))

    def _least_squares(self, form: Candidate) -> dict[float, Array]:
        """Power → the least squared error of each domain over the ridges tried, (V,)."""
        found: dict[float, Array] = {}
        for held in self.search.tried:
            if held.candidate.form == form and not held.candidate.ridges:
                squares = self.cv.domain_squares(held.predictions)
                power = held.candidate.power
                found[power] = np.minimum(found.get(power, np.inf), squares).clip(1e-300)
        return found

"""The trade-off of continued training between forgetting original data and learning new data.

The critical proportion of the original data (Ye et al., arXiv 2403.16952) is the one at which the
loss on it stays the same as before: among the mixtures that forget no more than is allowed, the one
that learns most of the new data. If each side keeps its inner proportions, it is where a curve
crosses the allowed loss. Otherwise the inner proportions are free, and it is a point of a frontier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from optimization.domain import objective
from optimization.domain.constraints import Constraints
from optimization.domain.feasible import Feasible, feasible
from optimization.domain.objective import Objective
from optimization.domain.predictor import Predictor
from optimization.search import epsilon_constraint
from optimization.search.epsilon_constraint import EpsilonConstraint
from training.record import keys
from training.record.errors import InputError

Array = np.ndarray
Span = tuple[float, float, float]  # value and the ends of its 90 % interval

LEVELS = 33  # of the curve or frontier
POINTS = 1025  # on the line between the sides
SAME = 1e-3  # error by rounding of a proportion that keeps its share of its side
FREE = 1e-6  # smallest range of a free proportion


@dataclass(frozen=True)
class CriticalProportion:
    """The answer for one tolerance; its fields are None if no mixture keeps the loss."""

    tolerance: float  # nats per token
    mixture: Array | None  # (M,)
    share: float | None  # of original data
    share_low: float | None  # sufficient by the lower end of the original loss's 90 % interval
    share_high: float | None  # sufficient by the upper end; None: no trained proportion is
    original: Span | None  # predicted losses there
    new: Span | None
    bound: float | None  # no allowed mixture has a lower loss on the new data


@dataclass(frozen=True)
class ForgettingCurve:
    """The critical proportions of a predictor of continued training."""

    predictor: Predictor
    allowed: Feasible
    original: Array  # weights of the validation domains, (V,)
    new: Array
    is_original: Array  # of the training domains, (M,) bool
    before: tuple[float, float]  # losses of the base model: original, new
    answers: tuple[CriticalProportion, ...]  # by rising tolerance, 0 first
    curve: pd.DataFrame  # share, original and new losses with intervals, mixture/<domain>…

    @property
    def trained(self) -> tuple[float, float]:
        """Lowest and highest proportion of original data among the fitted mixtures."""
        shares = self.predictor.fitted @ self.is_original
        return float(shares.min()), float(shares.max())

    @property
    def one_dimensional(self) -> bool:
        """Whether each side keeps its inner proportions."""
        return int((self.allowed.upper - self.allowed.lower > FREE).sum()) == 2

    def line(self, count: int) -> Array:
        """Mixtures, (count, M), on a line from the least to the most original data trained."""
        fitted = self.predictor.fitted
        order = (fitted @ self.is_original).argsort()
        ends = self.allowed.repaired(self.allowed.variables(fitted[order[[0, -1]]]))
        steps = np.linspace(0, 1, count)[:, None]
        return np.asarray((1 - steps) * ends[0] + steps * ends[1])

    def losses(self, mixture: Array) -> tuple[Span, Span]:
        """Original and new losses of a mixture (M,), with their intervals."""
        sums = np.stack([self.original, self.new], axis=1)
        values = self.predictor.surface.predict(mixture[None])[0] @ sums
        off = self.predictor.half_width(sums, mixture[None])[0]
        ends = np.stack([values, values - off, values + off]).T.tolist()
        return tuple(ends[0]), tuple(ends[1])


def solve(predictor: Predictor, tolerances: Sequence[float]) -> ForgettingCurve:
    """The critical proportions for these tolerances (nats per token) and 0, and the frontier.

    Raises InputError for a predictor without losses of a base model.
    """
    continual = predictor.spec.continual
    if continual is None:
        raise InputError(
            f"model {predictor.uri!r} has no losses of a base model; `critical` registers one "
            "that does"
        )
    original, new = (
        np.array([weights.get(d, 0.0) for d in predictor.val_domains])
        for weights in (continual.original_weights, continual.new_weights)
    )
    losses = np.array([continual.base[d] for d in predictor.val_domains])
    is_original = np.array([d in continual.original for d in predictor.domains])
    allowed = feasible(_trained(predictor, is_original), predictor.domains, predictor.tokens)
    with threadpool_limits(1):
        unsolved = ForgettingCurve(
            predictor=predictor,
            allowed=allowed,
            original=original,
            new=new,
            is_original=is_original,
            before=(float(losses @ original), float(losses @ new)),
            answers=(),
            curve=pd.DataFrame(),
        )
        trade_off = _search(unsolved)
        answers = [_critical(unsolved, trade_off, t) for t in sorted({0.0, *tolerances})]
        return replace(unsolved, answers=tuple(answers), curve=_curve(unsolved, trade_off))


def _trained(predictor: Predictor, is_original: Array) -> Constraints:
    """The mixtures within the trained proportions. A side is a bundle if its inner proportions were
    the same in all runs."""
    fitted = predictor.fitted
    domains = np.array(predictor.domains)
    bounds = {
        d: (float(low), float(high))
        for d, low, high in zip(domains, fitted.min(axis=0), fitted.max(axis=0), strict=True)
    }
    all_original = fitted @ is_original
    ends = float(all_original.min()), float(all_original.max())
    bounds["+".join(domains[is_original])] = ends
    bundles = {}
    for name, side in (("original", is_original), ("new", ~is_original)):
        varied = side & (np.ptp(fitted, axis=0) > FREE)  # the bounds fix all others
        proportions = fitted[:, varied]
        total = proportions.sum(axis=1, keepdims=True)
        inner = proportions.sum(axis=0) / max(total.sum(), FREE)
        if varied.sum() > 1 and np.abs(proportions - total * inner).max() < SAME:
            bundles[name] = dict(zip(domains[varied].tolist(), inner.tolist(), strict=True))
    bundled = {d for shares in bundles.values() for d in shares}
    return Constraints(
        bounds={name: ends for name, ends in bounds.items() if name not in bundled}, bundles=bundles
    )


def _search(forgetting: ForgettingCurve) -> EpsilonConstraint:
    predictor = forgetting.predictor
    return epsilon_constraint.search(
        objective.weighted(predictor, forgetting.new),
        objective.weighted(predictor, forgetting.original),
        forgetting.allowed,
        forgetting.line(POINTS) if forgetting.one_dimensional else predictor.fitted,
    )


def _critical(
    forgetting: ForgettingCurve, trade_off: EpsilonConstraint, tolerance: float
) -> CriticalProportion:
    level = forgetting.before[0] + tolerance
    best = trade_off.best(level)
    upper_end = objective.weighted(forgetting.predictor, forgetting.original, pessimistic=True)
    upper, lower = (
        _share(forgetting, trade_off, end, level) for end in (upper_end, _optimistic(upper_end))
    )
    if best is None:
        return CriticalProportion(tolerance, None, None, lower, upper, None, None, None)
    share = float(best @ forgetting.is_original)
    ends = [share, *(end for end in (lower, upper) if end is not None)]
    original, new = forgetting.losses(best)
    return CriticalProportion(
        tolerance=tolerance,
        mixture=best,
        share=share,
        share_low=min(ends),  # both ends may lie on one side of the share
        share_high=None if upper is None else max(ends),
        original=original,
        new=new,
        bound=trade_off.bound(best, level),
    )


def _optimistic(upper: Objective) -> Objective:
    """The objective at the lower end of the interval, from the one at its upper end."""
    assert upper.risk is not None
    return replace(upper, risk=replace(upper.risk, quantile=-upper.risk.quantile))


def _share(
    forgetting: ForgettingCurve, trade_off: EpsilonConstraint, limit: Objective, level: float
) -> float | None:
    best = trade_off.limited_by(limit).best(level)
    return None if best is None else float(best @ forgetting.is_original)


def _curve(forgetting: ForgettingCurve, trade_off: EpsilonConstraint) -> pd.DataFrame:
    """The line between the sides, or the frontier from least forgotten to most learnt."""
    if forgetting.one_dimensional:
        mixtures = forgetting.line(LEVELS)
    else:
        most = float(trade_off.limit(trade_off.unlimited()[None])[0])
        levels = np.linspace(trade_off.least_level, most, LEVELS)
        mixtures = np.array(
            [trade_off.samples[-1], *(trade_off.best(level) for level in levels[1:])]
        )
    rows = []
    for mixture in mixtures:
        original, new = forgetting.losses(mixture)
        rows.append((float(mixture @ forgetting.is_original), *original, *new, *mixture))
    ends = ("", "_low", "_high")
    return pd.DataFrame(
        rows,
        columns=[
            "share",
            *(f"{side}{end}" for side in ("original", "new") for end in ends),
            *(keys.MIXTURE + d for d in forgetting.predictor.domains),
        ],
    )

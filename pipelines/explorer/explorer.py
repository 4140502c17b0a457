"""What the page knows: a predictor, a search problem, and the mixtures to compare with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from fitting.artifact.spec import Target
from optimization.domain import constraints, objective
from optimization.domain.constraints import Constraints, Limits
from optimization.domain.differences import Differences
from optimization.domain.feasible import distances
from optimization.domain.predictor import Prediction, Predictor
from optimization.mixture.solve import BEST, OBSERVED, Mixture, Problem
from pipelines.explorer.moves import Rules
from pipelines.explorer.searches import RunningSearch, Searches
from training.record.layout import short_count
from training.record.mixtures import checked_weights

Array = np.ndarray
Ends = tuple[float | None, float | None]  # lowest and highest; None: the problem's
Bounds = Mapping[str, Ends]  # by variable

KEPT = 64  # targets, rules and comparisons
START_TRIALS = 60  # of Optuna; the polished best of them is certified as that of more trials is


@dataclass(frozen=True)
class Compared:
    """A mixture that the current one is compared with."""

    mixture: Mixture
    prediction: Prediction
    differences: Differences  # from this mixture


@dataclass(frozen=True)
class Comparison:
    """The prediction for the current mixture, beside those it is compared with."""

    prediction: Prediction
    compared: dict[str, Compared]
    differences: dict[str, tuple[float, float]]  # of the weighted loss, and half its 90 % interval
    by_loss: dict[str, tuple[Array, Array]]  # the same of each loss, (V,)
    warnings: list[str]


@dataclass
class Explorer:
    """A predictor to play with. Losses are weighted as the problem says."""

    predictor: Predictor
    problem: Problem
    default: tuple[str, Mixture]  # the name and the mixture that the best one is compared with
    searches: Searches = field(default_factory=Searches)

    @property
    def target(self) -> Target:
        return Target(self.predictor.n_params, self.predictor.tokens)

    @property
    def domains(self) -> tuple[str, ...]:
        return self.predictor.domains

    @cached_property
    def weights(self) -> Array:
        """Of the validation losses, (V,)."""
        names, own = self.predictor.val_domains, self.problem.weights
        return np.array(checked_weights(own, names)) if own else self.predictor.weights

    def at(self, target: Target) -> Predictor:
        """The predictor at another scale, the same object for the same scale."""
        return self.predictor if target == self.target else self._at(target)

    def rules(self, target: Target, bounds: Bounds) -> Rules:
        """The problem's rules with these bounds of variables in place of its own."""
        return self._rules(target.tokens, tuple(sorted(bounds.items())))

    def constraints(self, bounds: Bounds) -> Constraints:
        """The problem's constraints with these bounds of variables; an open end is its own."""
        own = self.problem.constraints
        named: dict[str, Limits] = {}
        for name, (low, high) in bounds.items():
            key = "+".join(own.bundles.get(name, [name]))
            lowest, highest = own.bounds.get(key, (0.0, 1.0))
            named[key] = (lowest if low is None else low, highest if high is None else high)
        return replace(own, bounds={**own.bounds, **named})

    def search_at(self, target: Target) -> RunningSearch:
        """The search of the problem's best mixture at a scale."""
        problem = replace(self.problem, trials=min(START_TRIALS, self.problem.trials))
        return self.searches.search(target, self.at(target), problem)

    def mixtures(self, target: Target) -> dict[str, Mixture]:
        """The mixtures to start from, by name."""
        name, default = self.default
        best = self.search_at(target).best
        found = {BEST: best} if best else {}
        return {name: default, **found, OBSERVED: dict(self.predictor.spec.best_observed)}

    def compared(self, target: Target) -> dict[str, Compared]:
        """The default mixture and, once it is found, the best one."""
        return {
            name: self._compared(target, tuple(mixture.items()))
            for name, mixture in self.mixtures(target).items()
            if name != OBSERVED
        }

    def read(self, mixture: Mixture, target: Target) -> Comparison:
        """All that the page shows of a mixture."""
        row = np.array([[mixture[d] for d in self.domains]])
        compared = self.compared(target)
        prediction = self.predict(mixture, target)
        return Comparison(
            prediction,
            compared,
            {
                name: (
                    prediction.objective - other.prediction.objective,
                    float(other.differences.half_width(row)[0]),
                )
                for name, other in compared.items()
            },
            {
                name: (mean[0], half[0])
                for name, other in compared.items()
                for mean, half in [other.differences.by_loss(row)]
            },
            [*self._outside(row[0], prediction.distance), *self._beyond(target)],
        )

    def predict(self, mixture: Mixture, target: Target) -> Prediction:
        """The predictor's answer, with the objective by the problem's weights."""
        predictor = self.at(target)
        prediction = predictor.predict_one(mixture)
        if self.problem.weights is None:
            return prediction
        row = np.array([[mixture[d] for d in self.domains]])
        losses = [prediction.losses[name] for name in predictor.val_domains]
        loss, half = float(self.weights @ losses), predictor.half_width(self.weights, row)[0]
        return replace(prediction, objective=loss, low=loss - half, high=loss + half)

    @cached_property
    def usual_distance(self) -> float:
        """The largest distance of a fitted mixture from its nearest neighbour (share of tokens)."""
        fitted = np.unique(self.predictor.fitted, axis=0)
        apart = distances(fitted, fitted)
        np.fill_diagonal(apart, np.inf)
        return float(apart.min(axis=1).max()) if len(fitted) > 1 else 0.0

    def _outside(self, mixture: Array, distance: float) -> list[str]:
        """Why the law may not know a mixture, (M,)."""
        lines = []
        rows = constraints.rows(self._explored, self.domains, 1.0)
        broken = [row.name for row in rows if row.coefficients @ mixture > row.limit + 1e-4]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            lines.append(f"Outside the bounds of the fit ({broken[0]}{more}).")
        if distance > self.usual_distance:
            lines.append(
                f"{distance:.3f} from the nearest fitted mixture: farther than any fitted mixture "
                f"lies from its nearest neighbour ({self.usual_distance:.3f})."
            )
        return [f"{line} The law may be wrong here." for line in lines]

    def _beyond(self, target: Target) -> list[str]:
        """How far a target lies beyond the fitted runs."""
        interval, only = self.predictor.artifact_model.interval, self.predictor.spec.only
        parts = []
        if only.n_params is None and target.n_params > 1.001 * interval.n0:
            ratio, most = target.n_params / interval.n0, short_count(interval.n0)
            parts.append(f"{ratio:.3g}× the parameters of the largest fitted model ({most})")
        if only.tokens is None and target.tokens > 1.001 * interval.d0:
            ratio, most = target.tokens / interval.d0, short_count(interval.d0)
            parts.append(f"{ratio:.3g}× the most tokens of a fitted run ({most})")
        beyond = f"The target has {' and '.join(parts)}. The intervals allow for that."
        return [beyond] if parts else []

    def _compare(self, mixture: Mixture, target: Target) -> Compared:
        predictor = self.at(target)
        plain = objective.weighted(predictor, self.weights)
        base = np.array([mixture[d] for d in self.domains])
        return Compared(
            mixture, self.predict(mixture, target), Differences.of(predictor, plain, base)
        )

    @cached_property
    def _explored(self) -> Constraints:
        return self.predictor.explored()

    @cached_property
    def _at(self) -> Callable[[Target], Predictor]:
        return lru_cache(KEPT)(lambda target: self.predictor.at(**vars(target)))

    @cached_property
    def _rules(self) -> Callable[[float, tuple[tuple[str, Ends], ...]], Rules]:
        def of(tokens: float, bounds: tuple[tuple[str, Ends], ...]) -> Rules:
            return Rules.of(self.constraints(dict(bounds)), self.domains, tokens)

        return lru_cache(KEPT)(of)

    @cached_property
    def _compared(self) -> Callable[[Target, tuple[tuple[str, float], ...]], Compared]:
        return lru_cache(KEPT)(lambda target, shares: self._compare(dict(shares), target))

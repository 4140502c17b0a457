"""Solve a problem with a predictor: find the best mixture and describe it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from optimization.domain import objective
from optimization.domain.constraints import Constraints
from optimization.domain.differences import Differences
from optimization.domain.feasible import Feasible, feasible
from optimization.domain.objective import DEVIATION, LOSS, WORST, Objective
from optimization.domain.predictor import Prediction, Predictor
from optimization.mixture import sensitivity
from optimization.mixture.sensitivity import Sensitivity, Steps
from optimization.search import projection, search
from optimization.search.search import Front, SearchResult
from training.record import keys
from training.record.errors import InputError
from training.record.mixtures import MIXTURE_TOLERANCE, checked_mixture, checked_weights

Array = np.ndarray
Mixture = dict[str, float]

BEST, DEFAULT, REFERENCE = "best", "default", "reference"
OBSERVED = "best observed"


@dataclass(frozen=True)
class Problem:
    """The objective and constraints of a mixture search."""

    objectives: tuple[str, ...] = (LOSS,)
    """`loss` (weighted), `worst` (the worst domain's excess over the reference), or several of
    `loss`, `deviation` (divergence from the reference) and validation domains."""
    weights: Mapping[str, float] | None = None  # of the validation domains; None: the predictor's
    constraints: Constraints = field(default_factory=Constraints)
    reference: Mapping[str, float] | None = None  # None: the default, or else uniform
    pull: float | None = 0.0  # nats per token for a nat of divergence; None: automatic
    pessimistic: bool = False  # minimise the upper end of the interval
    centre: Mapping[str, float] | None = None  # of the trust region; None: the fitted mixtures
    trials: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """The best mixture, the mixtures it is compared with, its certainty and its sensitivity."""

    problem: Problem
    predictor: Predictor
    allowed: Feasible
    weights: Array  # of the validation domains, (V,), summing to one
    mixtures: dict[str, Mixture]  # `best` first
    predictions: dict[str, Prediction]
    compared: str  # the mixture that the gain is measured against
    differences: Differences  # of the weighted loss, from the best mixture
    steps: Steps | None  # the gain in steps; None without a step law
    search: SearchResult | Front
    pull: float = 0.0  # its strength
    path: pd.DataFrame | None = None  # the best mixture at each strength of the pull
    sensitivity: Sensitivity | None = None  # None for several objectives, or if not asked for

    @property
    def best(self) -> Mixture:
        return self.mixtures[BEST]

    @property
    def gain(self) -> float:
        """Reduction of the weighted loss."""
        return self.loss(self.compared) - self.loss(BEST)

    @property
    def gain_half_width(self) -> float:
        """Half the 90 % interval of the gain."""
        return self.above_best(self.compared)[1]

    def above_best(self, name: str) -> tuple[float, float]:
        """The predicted loss of a compared mixture less that of the best, and half the 90 %
        interval of this difference."""
        half_width = self.differences.half_width(self._array(name))[0]
        return self.loss(name) - self.loss(BEST), float(half_width)

    def broken_rule(self, name: str) -> str:
        """The rule that a compared mixture breaks, in words; empty if it breaks none."""
        return self.allowed.broken_rule(self._array(name)[0], MIXTURE_TOLERANCE)

    def _array(self, name: str) -> Array:
        return np.array([[self.mixtures[name][d] for d in self.predictor.domains]])

    def loss(self, name: str) -> float:
        """The predicted loss of a compared mixture, by the problem's weights."""
        losses = self.predictions[name].losses
        return float(np.dot(self.weights, [losses[d] for d in self.predictor.val_domains]))

    def interval(self, name: str) -> tuple[float, float]:
        """The ends of the 90 % interval of that loss."""
        half_width = float(self.predictor.half_width(self.weights, self._array(name))[0])
        return self.loss(name) - half_width, self.loss(name) + half_width


@dataclass(frozen=True)
class _Setting:
    """A problem with the names and constraints resolved by a predictor."""

    problem: Problem
    predictor: Predictor
    weights: Array
    allowed: Feasible
    known: dict[str, Array]
    compared: str

    @property
    def reference(self) -> Array:
        return self.known[self.compared]

    def objective(self, name: str) -> Objective:
        """One of the problem's objectives, without the pull."""
        pessimistic = self.problem.pessimistic
        if name == WORST:
            term = objective.worst_excess(
                self.predictor, self.weights, self.reference, pessimistic=pessimistic
            )
        elif name == DEVIATION:
            self.refuse_infinite_pull()
            term = objective.pull_alone(self.predictor)
        else:
            weights = self.weights
            if name != LOSS:
                weights = np.eye(len(weights))[self.predictor.val_domains.index(name)]
            term = objective.weighted(self.predictor, weights, pessimistic=pessimistic)
        return replace(term, reference=self.reference)

    @property
    def finite(self) -> bool:
        """Whether every allowed mixture has a finite divergence from the reference."""
        return not self._lacking()

    def refuse_infinite_pull(self) -> None:
        if lacking := self._lacking():
            raise InputError(
                f"reference: it has none of {lacking[0]!r}, so that any of it lies infinitely far "
                "away; give the domain a proportion there, or none in the search "
                f"(bounds={lacking[0]}=0)"
            )

    def _lacking(self) -> list[str]:
        highest = self.allowed.spread @ self.allowed.upper
        rows = zip(self.allowed.domains, self.reference, highest, strict=True)
        return [domain for domain, share, most in rows if share == 0 and most > 0]


def solve(predictor: Predictor, problem: Problem, *, explain: bool = True) -> Answer:
    """Find, certify and, if asked to, explain the best mixture of a problem: its sensitivity takes
    most of the time.

    Raises InputError for constraints that no mixture satisfies together, and for unknown names.
    """
    weights = predictor.weights
    if problem.weights:
        weights = np.array(checked_weights(problem.weights, predictor.val_domains))
    centres = predictor.fitted
    if problem.centre is not None:
        centres = np.array([[problem.centre[d] for d in predictor.domains]])
    allowed = feasible(problem.constraints, predictor.domains, predictor.tokens, centres)
    known = _known(predictor, problem, allowed)
    compared = next((name for name in (REFERENCE, DEFAULT) if name in known), None)
    setting = _Setting(
        problem=problem,
        predictor=predictor,
        weights=weights,
        allowed=allowed,
        known=known,
        compared=compared or next(name for name in known if name != OBSERVED),
    )
    _refuse_unreadable(problem, predictor)
    with threadpool_limits(1):  # small matrices: more threads only wait for each other
        several = len(problem.objectives) > 1
        return _several(setting) if several else _single(setting, explain=explain)


def _several(setting: _Setting) -> Answer:
    objectives = {
        name if name in (LOSS, DEVIATION) else keys.VAL_LOSS + name: setting.objective(name)
        for name in setting.problem.objectives
    }
    trials, seed = setting.problem.trials, setting.problem.seed
    front = search.front(objectives, setting.allowed, setting.known, trials, seed)
    return _answer(setting, front)


def _single(setting: _Setting, *, explain: bool) -> Answer:
    problem, allowed = setting.problem, setting.allowed
    if problem.pull != 0:
        setting.refuse_infinite_pull()
    free = setting.objective(problem.objectives[0])
    result = search.search(free, allowed, setting.known, problem.trials, problem.seed)
    path, strength = None, problem.pull or 0.0
    if setting.finite and (explain or problem.pull is None):
        path = sensitivity.pull_path(free, allowed, result.mixture, problem.pull)
        strength = sensitivity.strongest_pull(path) if problem.pull is None else problem.pull
    pulled = free.pulled(strength)
    if strength:
        result = search.search(pulled, allowed, setting.known, problem.trials, problem.seed)
    answer = replace(_answer(setting, result), path=path, pull=strength)
    if not explain:
        return answer
    near = sensitivity.analyse(pulled, allowed, result.mixture, setting.predictor)
    return replace(answer, sensitivity=near)


def _answer(setting: _Setting, result: SearchResult | Front) -> Answer:
    predictor, weights = setting.predictor, setting.weights
    domains = predictor.domains
    arrays = {BEST: result.mixture, **setting.known}
    mixtures = {n: dict(zip(domains, r.tolist(), strict=True)) for n, r in arrays.items()}
    plain = objective.weighted(predictor, weights)
    return Answer(
        problem=setting.problem,
        predictor=predictor,
        allowed=setting.allowed,
        weights=weights,
        mixtures=mixtures,
        predictions={name: predictor.predict_one(mixture) for name, mixture in mixtures.items()},
        compared=setting.compared,
        differences=Differences.of(predictor, plain, result.mixture),
        steps=sensitivity.in_steps(predictor, weights, result.mixture, setting.reference),
        search=result,
    )


def _known(predictor: Predictor, problem: Problem, allowed: Feasible) -> dict[str, Array]:
    """The mixtures that the best one is compared with, by name.

    Raises InputError for a reference outside the explored mixtures.
    """
    domains, spec = predictor.domains, predictor.spec

    def array(mixture: Mapping[str, float], name: str) -> Array:
        return np.array([*checked_mixture(mixture, domains, name).values()])

    known = {}
    if problem.reference:
        known[REFERENCE] = array(problem.reference, REFERENCE)
        _refuse_outside(known[REFERENCE], predictor)
    if spec.default_mixture:
        known[DEFAULT] = array(spec.default_mixture, DEFAULT)
    name, even = projection.uniform(allowed)
    known[name] = even
    known[OBSERVED] = array(spec.best_observed, OBSERVED)
    return known


def _refuse_outside(reference: Array, predictor: Predictor) -> None:
    rules = feasible(predictor.explored(), predictor.domains, predictor.tokens)
    if broken := rules.broken_rule(reference, MIXTURE_TOLERANCE):
        raise InputError(
            f"{REFERENCE}: it lies outside the mixtures that were explored ({broken}), where the "
            "law knows nothing; give another reference"
        )


def _refuse_unreadable(problem: Problem, predictor: Predictor) -> None:
    """Raise InputError for invalid objectives or an invalid pull."""
    objectives, several = problem.objectives, len(problem.objectives) > 1
    known = (LOSS, DEVIATION, *predictor.val_domains) if several else (LOSS, WORST)
    for name in objectives:
        if name not in known:
            alone = name in predictor.val_domains
            raise InputError(
                f"objective: {name!r}; it is {', '.join(known)}"
                + (" or several of these" if several else ", or several, separated by commas")
                + (f"; for one alone, weigh the others 0 (weights={name}=1,…)" if alone else "")
            )
    if len(set(objectives)) < len(objectives):
        raise InputError(f"objective: {','.join(objectives)} names one twice")
    if problem.pull is not None and not 0 <= problem.pull < np.inf:
        raise InputError(f"pull: {problem.pull:g}; it must be >= 0, or auto")
    if problem.pull != 0 and several:
        raise InputError(
            "pull: it belongs to one objective; with several, name deviation among them and leave "
            "the pull out (pull=0)"
        )

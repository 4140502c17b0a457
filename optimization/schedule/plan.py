"""Find the best schedule with a registered schedule predictor: the best mixture of each phase, and
the gain over one mixture for all phases.

The law adds: L at a phase's end is ρ · L at its start + m(r). So the value of a state is linear in
it. With λ_K = w and λ_{k-1} = ρ_k λ_k (for each domain), phase k adds Σ λ_k m_k(r) to the objective
at the end of the last phase, independently of the other phases. Bellman's recursion is exact, each
phase is one ordinary search, and the bounds of the searches add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from optimization.domain.feasible import Feasible
from optimization.domain.objective import Objective
from optimization.domain.predictor import Convex
from optimization.schedule.predictor import SchedulePredictor
from optimization.search.descent import descend
from optimization.search.search import SearchResult, search

Array = np.ndarray

JOINT, GREEDY, CONSTANT = "schedule", "phase by phase", "constant"
TRAJECTORIES = "by trajectories"
ENDS = (0.05, 0.95)  # quantiles over the laws of the bootstrap


@dataclass(frozen=True)
class Stacked:
    """The losses that one mixture adds in several phases, concatenated, (n, K V)."""

    phases: tuple[Convex, ...]

    @property
    def power(self) -> float:
        return self.phases[0].power

    def predict(self, mixtures: Array) -> Array:
        return np.concatenate([p.predict(mixtures) for p in self.phases], axis=1)

    def jacobian(self, mixtures: Array) -> Array:
        return np.concatenate([p.jacobian(mixtures) for p in self.phases], axis=1)

    def feature_jacobian(self, mixtures: Array) -> Array:
        return np.concatenate([p.feature_jacobian(mixtures) for p in self.phases], axis=1)

    def features(self, mixtures: Array) -> Array:
        return self.phases[0].features(mixtures)

    def feature_slopes(self, mixtures: Array) -> Array:
        return self.phases[0].feature_slopes(mixtures)


@dataclass(frozen=True)
class Strategy:
    """A way to choose the mixtures of the phases, and its schedule."""

    name: str
    schedule: Array  # (K, M)
    objectives: Array  # predicted after each phase, (K,)
    replicates: Array  # the same by each law of the bootstrap, (B, K)
    bound: float | None  # no schedule of its kind ends lower; None if unproven


@dataclass(frozen=True)
class ScheduleAnswer:
    """The schedules of all strategies."""

    predictor: SchedulePredictor
    strategies: dict[str, Strategy]
    resampled_gains: Array
    """Gains of schedules over constant mixtures, (B,). Each law of the bootstrap chooses both, and
    the law of all runs evaluates them: this is how much of the gain is robust to the runs drawn."""

    @property
    def best(self) -> Strategy:
        return self.strategies[JOINT]

    def gain(self, name: str = JOINT) -> float:
        """Gain at the end over the best constant mixture, nats per token."""
        constant, strategy = self.strategies[CONSTANT], self.strategies[name]
        return float(constant.objectives[-1] - strategy.objectives[-1])

    def range(self, name: str = JOINT) -> tuple[float, float]:
        """The central 90 % of the gain over the laws of the bootstrap."""
        constant, strategy = self.strategies[CONSTANT], self.strategies[name]
        gains = constant.replicates[:, -1] - strategy.replicates[:, -1]
        low, high = np.quantile(gains, ENDS)
        return float(low), float(high)

    @property
    def distinguishable(self) -> bool:
        """Whether 95 % of the laws of the bootstrap choose a schedule that is better."""
        return float(np.quantile(self.resampled_gains, ENDS[0])) > 0


@dataclass(frozen=True)
class _Searches:
    """Searches for the mixtures of phases over one allowed set."""

    predictor: SchedulePredictor
    allowed: Feasible
    known: Mapping[str, Array]
    trials: int
    seed: int

    def find(self, phases: list[int], weights: list[Array]) -> SearchResult:
        """The best common mixture of several phases, each with the weights of what it adds."""
        objective = _objective(self.predictor.law, phases, weights)
        return search(objective, self.allowed, self.known, self.trials, self.seed)

    def constant(self, last: int) -> SearchResult:
        """The common mixture of the phases up to `last` with the lowest weighted loss there."""
        return self.find(list(range(last + 1)), self.predictor.values(self.predictor.law, last))

    def resampled_gains(self, joint: Array, constant: Array) -> Array:
        """As in the answer, (B,), from the optima of the law of all runs, (K, M) and (M,)."""
        p, phases = self.predictor, list(range(len(self.predictor.tokens)))
        ends = []
        for law in p.replicates:
            values = p.values(law, phases[-1])
            schedule = np.array(
                [descend(_objective(law, [k], [values[k]]), self.allowed, joint[k]) for k in phases]
            )
            mixture = descend(_objective(law, phases, values), self.allowed, constant)
            pair = np.stack([schedule, np.broadcast_to(mixture, schedule.shape)])
            ends.append(p.objectives(p.law, pair)[:, -1])
        return np.diff(ends, axis=1)[:, 0]

    def strategy(self, name: str, results: list[SearchResult], *, proven: bool = True) -> Strategy:
        mixtures = np.array([result.mixture for result in results])
        schedule = np.broadcast_to(mixtures, (len(self.predictor.tokens), mixtures.shape[1]))
        bounds = [result.bound for result in results if result.bound is not None]
        return Strategy(
            name=name,
            schedule=schedule,
            objectives=self.predictor.objectives(self.predictor.law, schedule[None])[0],
            replicates=np.array(
                [
                    self.predictor.objectives(law, schedule[None])[0]
                    for law in self.predictor.replicates
                ]
            ),
            bound=sum(bounds) if proven and len(bounds) == len(results) else None,
        )


def _objective(law: Any, phases: list[int], weights: list[Array]) -> Objective:
    surface = Stacked(tuple(law.phase(k) for k in phases))
    return Objective(surface, np.concatenate(weights)[:, None], np.zeros(1))


def solve(
    predictor: SchedulePredictor,
    allowed: Feasible,
    known: Mapping[str, Array],
    trials: int,
    seed: int,
) -> ScheduleAnswer:
    """The schedules of four strategies: the best schedule; the best mixture of each phase for its
    own end; the best constant mixture; and, for each phase, the constant mixture that is best at
    its end (the offline method of RegMix-D, arXiv 2606.18663)."""
    searches = _Searches(predictor, allowed, known, trials, seed)
    last = len(predictor.tokens) - 1
    with threadpool_limits(1):  # small matrices: more threads only wait for each other
        values = predictor.values(predictor.law, last)
        joint = [searches.find([k], [values[k]]) for k in range(last + 1)]
        greedy = [searches.find([k], [predictor.weights]) for k in range(last)]
        constants = [searches.constant(k) for k in range(last + 1)]
        schedule = np.array([result.mixture for result in joint])
        gains = searches.resampled_gains(schedule, constants[-1].mixture)
    strategies = (
        searches.strategy(JOINT, joint),
        searches.strategy(GREEDY, [*greedy, joint[-1]], proven=False),
        searches.strategy(CONSTANT, constants[-1:]),
        searches.strategy(TRAJECTORIES, constants, proven=False),
    )
    return ScheduleAnswer(predictor, {s.name: s for s in strategies}, gains)

"""Search for the best mixture with Optuna, polish the best trials, and certify the result where
possible."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import optuna
import pandas as pd

from optimization.domain.feasible import Feasible
from optimization.domain.objective import Objective
from optimization.search.certificate import prove
from optimization.search.descent import descend

Array = np.ndarray
Values = Callable[[Array], Array]  # mixtures (n, M) → (n, objectives)

NOTHING = 1e-12  # proportions below this are rounding errors of 0
BATCH = 20  # mixtures evaluated at once
POLISHED = 10  # best trials, from which the descent starts
WEIGHTINGS = 24  # most weightings of several objectives whose optima are polished
KNOWN, SEARCH, POLISH = "known", "search", "polish"


@dataclass(frozen=True)
class SearchResult:
    """The best mixture, how much better any other could be, and every trial."""

    mixture: Array  # (M,)
    value: float
    bound: float | None  # no allowed mixture has a lower value; None if unproven
    agreeing: int  # how many of the polished starts ended within 1e-6 of the best value
    starts: int
    trials: pd.DataFrame  # trial, kind, objective, mixture/<domain>…


@dataclass(frozen=True)
class Front:
    """The Pareto front of several objectives: every trial, and which ones are not dominated."""

    trials: pd.DataFrame  # trial, kind, each objective, on_front, mixture/<domain>…
    objectives: tuple[str, ...]
    chosen: int  # the trial on the front nearest to the minimum of every objective
    mixture: Array  # of the chosen trial, (M,)


def search(
    objective: Objective, feasible: Feasible, known: Mapping[str, Array], trials: int, seed: int
) -> SearchResult:
    """Minimise the objective over the allowed mixtures.

    The known mixtures that are allowed come first, then Optuna's TPE on the cube of
    `Feasible.from_cube`. The best trials are polished by gradient descent.
    """
    run = _Trials(feasible, ("objective",), seed, trials)
    run.search(lambda mixtures: objective(mixtures)[:, None], known, trials)
    table = run.table()
    best_first = table["objective"].to_numpy().argsort(kind="stable")[:POLISHED]
    starts = table[feasible.columns].to_numpy()[best_first]
    polished = np.array([descend(objective, feasible, start) for start in starts])
    values = objective(polished)
    best, bound = prove(objective, feasible, polished[values.argmin()])
    ends = np.vstack([polished, best])
    run.add(ends, objective(ends)[:, None], POLISH)
    value = float(objective(best[None])[0])
    agreeing = int((values <= value + 1e-6).sum())
    best = np.where(best < NOTHING, 0.0, best)
    return SearchResult(best, value, bound, agreeing, len(starts), run.table())


def front(
    objectives: Mapping[str, Objective],
    feasible: Feasible,
    known: Mapping[str, Array],
    trials: int,
    seed: int,
) -> Front:
    """Minimise several objectives by an Optuna study with a direction for each.

    The optima of weighted sums of the objectives are added to the trials. Each objective is scaled
    by its range over the trials.
    """
    run = _Trials(feasible, tuple(objectives), seed, trials)

    def values(mixtures: Array) -> Array:
        return np.stack([objective(mixtures) for objective in objectives.values()], axis=1)

    run.search(values, known, trials)
    table = run.table()
    seen = table[list(objectives)].to_numpy()
    best_half = np.quantile(seen, 0.5, axis=0) - seen.min(axis=0)
    starts = table[feasible.columns].to_numpy()
    for weights in _weightings(len(objectives)):
        scaled = weights / np.maximum(best_half, 1e-12)
        summed = _sum(list(objectives.values()), scaled / scaled.sum())
        start = starts[summed(starts).argmin()]
        end = descend(summed, feasible, start)[None]
        run.add(end, values(end), POLISH)
    table = run.table()
    seen = table[list(objectives)].to_numpy()
    on_front = run.on_front()
    table.insert(2 + len(objectives), "on_front", on_front)
    least, most = seen[on_front].min(axis=0), seen[on_front].max(axis=0)
    apart = np.linalg.norm((seen - least) / np.maximum(most - least, 1e-12), axis=1)
    chosen = int(np.where(on_front, apart, np.inf).argmin())
    mixture = table[feasible.columns].to_numpy()[chosen]
    return Front(table, tuple(objectives), chosen, mixture)


class _Trials:
    """An Optuna study over the allowed mixtures, and its trials as a table."""

    def __init__(self, feasible: Feasible, names: Sequence[str], seed: int, trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=max(20, trials // 5)
        )
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(names)
        self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._feasible, self._names = feasible, names
        self._cube = [f"u{i}" for i in range(feasible.free)]
        self._rows: list[dict[str, object]] = []

    def search(self, values: Values, known: Mapping[str, Array], trials: int) -> None:
        """Evaluate the known mixtures that are allowed, then draw more up to `trials`."""
        named = [mixture for mixture in known.values() if self._feasible.inside(mixture[None])[0]]
        distinct = np.unique(np.reshape(named, (-1, len(self._feasible.domains))), axis=0)
        if len(distinct):
            self.add(distinct, values(distinct), KNOWN)
        while len(self._rows) < trials:
            batch = [self._study.ask() for _ in range(min(BATCH, trials - len(self._rows)))]
            points = [[trial.suggest_float(u, 0.0, 1.0) for u in self._cube] for trial in batch]
            mixtures = self._feasible.from_cube(np.reshape(points, (len(batch), len(self._cube))))
            for trial, mixture, row in zip(batch, mixtures, values(mixtures), strict=True):
                self._study.tell(trial, row.tolist())
                self._row(SEARCH, row, mixture)

    def add(self, mixtures: Array, values: Array, kind: str) -> None:
        """Add mixtures that the study did not propose."""
        points = self._feasible.to_cube(mixtures)
        unit = optuna.distributions.FloatDistribution(0.0, 1.0)
        spaces: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(self._cube, unit)
        for point, mixture, row in zip(points, mixtures, values, strict=True):
            params = dict(zip(self._cube, point.tolist(), strict=True))
            trial = optuna.create_trial(
                params=params,
                distributions=spaces,
                values=row.tolist(),
                user_attrs={"kind": kind},
            )
            self._study.add_trial(trial)
            self._row(kind, row, mixture)

    def on_front(self) -> Array:
        """Whether each trial is not dominated by another, (trials,) bool."""
        best = {trial.number for trial in self._study.best_trials}
        return np.array([row["trial"] in best for row in self._rows])

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    def _row(self, kind: str, values: Array, mixture: Array) -> None:
        row: dict[str, object] = {"trial": len(self._rows), "kind": kind}
        row |= dict(zip(self._names, values.tolist(), strict=True))
        columns = self._feasible.columns
        self._rows.append(row | dict(zip(columns, mixture.tolist(), strict=True)))


def _weightings(objectives: int) -> list[Array]:
    """At most WEIGHTINGS weights of several objectives, evenly spread over their simplex."""
    steps = WEIGHTINGS - 1
    while True:
        weightings = [
            np.array(w) / steps for w in product(range(steps + 1), repeat=objectives)
            if sum(w) == steps
        ]  # fmt: skip
        if len(weightings) <= WEIGHTINGS or steps == 1:
            return weightings
        steps -= 1


def _sum(objectives: Sequence[Objective], weights: Array) -> Objective:
    """The weighted sum of objectives that have one sum each or only a pull."""
    first = objectives[0]
    return Objective(
        first.surface,
        np.sum([w * o.sums for w, o in zip(weights, objectives, strict=True)], axis=0),
        np.zeros(1),
        reference=next((o.reference for o in objectives if o.reference is not None), None),
        pull=float(sum(w * o.pull for w, o in zip(weights, objectives, strict=True))),
    )

"""Search the mixture with Optuna against a predictor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd

from optimization import simplex

Array = np.ndarray
BATCH = 20  # mixtures the predictor is asked about at once


@dataclass(frozen=True)
class SearchResult:
    """The best mixture found, and every trial."""

    mixture: dict[str, float]
    objective: float
    trials: pd.DataFrame  # number, objective, proportion of each domain


def search(
    objective: Callable[[Array], Array],
    domains: Sequence[str],
    lower: Array,
    upper: Array,
    known: Mapping[str, Mapping[str, float]],
    trials: int,
    seed: int,
) -> SearchResult:
    """Minimise the objective over the mixtures within the bounds.

    `objective` maps mixtures (n, M) to values (n,). The known mixtures that lie within the bounds
    are tried first; the rest is Optuna's TPE on the cube that `simplex.from_cube` maps.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=max(20, trials // 5)
    )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    cube = [f"u{j}" for j in range(len(domains) - 1)]
    for mixture in known.values():
        point = np.array([[mixture[d] for d in domains]])
        if simplex.inside(point[0], lower, upper):
            study.enqueue_trial(
                dict(zip(cube, simplex.to_cube(point, lower, upper)[0], strict=True))
            )
    rows: list[dict[str, float]] = []
    while len(rows) < trials:
        batch = [study.ask() for _ in range(min(BATCH, trials - len(rows)))]
        points = np.array([[t.suggest_float(u, 0.0, 1.0) for u in cube] for t in batch])
        mixtures = simplex.from_cube(points, lower, upper)
        values = objective(mixtures)
        for trial, mixture, value in zip(batch, mixtures, values, strict=True):
            study.tell(trial, float(value))
            rows.append({"trial": trial.number, "objective": value, **_named(domains, mixture)})
    table = pd.DataFrame(rows)
    best = table.loc[table["objective"].idxmin()]
    return SearchResult(
        {domain: float(best[domain]) for domain in domains}, float(best["objective"]), table
    )


def _named(domains: Sequence[str], mixture: Array) -> dict[str, float]:
    return dict(zip(domains, map(float, mixture), strict=True))

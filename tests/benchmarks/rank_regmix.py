"""Rank unseen runs of RegMix: our mixing laws against boosted trees, in the same five folds.

    python -m tests.benchmarks.rank_regmix [folder of the two CSV files]

LightGBM runs as RegMix (arXiv 2407.01492) runs it, early stopping on the predicted fold included,
where the package `lightgbm` is installed; scikit-learn's histogram boosting in any case.
"""

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators import candidates
from fitting.estimators.candidates import Candidate
from fitting.selection import choose
from fitting.selection.cross_validation import spearman
from fitting.selection.forms import Options
from tests.support.tables import swarm

Array = np.ndarray
Predict = Callable[[Array, Array], Array]  # rows to fit and rows to predict (bool) → (rows, V)

FOLDS = 5


def main() -> None:
    o = swarm("regmix", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    x, y = o.proportions(), o.losses
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    ways: dict[str, Predict] = {
        "φ = r, one exponential (paper)": lambda a, b: law(o, a, b, Candidate("joint", 1.0, 1e-6)),
        "φ = √r, one exponential": lambda a, b: law(o, a, b, Candidate("joint", 0.5, 1e-6)),
        "φ = √r, two exponentials": lambda a, b: law(o, a, b, Candidate("joint", 0.5, 1e-6, 2)),
        "the defaults, chosen within each fold": lambda a, b: law(o, a, b, None),
        "histogram boosting": lambda a, b: columns(y, lambda v: boosted(x, y[:, v], a, b)),
    }
    if find_spec("lightgbm"):
        ways["LightGBM as RegMix"] = lambda a, b: columns(y, lambda v: lightgbm(x, y[:, v], a, b))
    print(f"{len(y)} runs, {x.shape[1]} domains, {y.shape[1]} validation domains, {FOLDS} folds")
    print(f"{'':40} Spearman   rmse  seconds")
    for name, predict in ways.items():
        began, predicted = time.perf_counter(), np.empty(y.shape)
        with threadpool_limits(1):
            for k in range(FOLDS):
                predicted[fold == k] = predict(fold != k, fold == k)
        seconds = time.perf_counter() - began
        rank = spearman(y, predicted).mean()
        rmse = np.sqrt(((predicted - y) ** 2).mean())
        print(f"{name:40} {rank:8.4f} {rmse:6.4f} {seconds:8.2f}")


def law(o: Observations, train: Array, rows: Array, candidate: Candidate | None) -> Array:
    scale = Target(float(o.n_params[0]), float(o.tokens[0]))
    fitted = o.rows(train)
    if candidate is None:
        weights = np.full(o.losses.shape[1], 1 / o.losses.shape[1])
        candidate = choose.choose(fitted, weights, scale, Options(compare=False)).best
    found = candidates.fit(fitted, candidate, scale)
    return found.predict(o.proportions()[rows], o.n_params[rows], o.tokens[rows])


def columns(y: Array, predict: Callable[[int], Array]) -> Array:
    return np.stack([predict(v) for v in range(y.shape[1])], axis=1)


def boosted(x: Array, y: Array, train: Array, rows: Array) -> Array:
    model = HistGradientBoostingRegressor(random_state=0)
    return np.asarray(model.fit(x[train], y[train]).predict(x[rows]))


def lightgbm(x: Array, y: Array, train: Array, rows: Array) -> Array:
    import lightgbm as trees

    data = trees.Dataset(x[train], y[train])
    model = trees.train(
        {
            "objective": "regression",
            "metric": ["l1", "l2"],
            "learning_rate": 1e-2,
            "seed": 42,
            "num_threads": 1,
            "verbosity": -1,
        },
        data,
        num_boost_round=1000,
        valid_sets=[data.create_valid(x[rows], y[rows])],
        callbacks=[trees.early_stopping(3, verbose=False)],
    )
    return np.asarray(model.predict(x[rows]))


if __name__ == "__main__":
    main()

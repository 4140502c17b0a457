"""A weighted sum of laws, each law alone and boosted trees, on swarms, in the same five folds.

    python -m tests.benchmarks.weigh_laws [regmix | olmix]

Of the runs that a fit has not seen: the median over metrics of R², Spearman's ρ of the mean metric
and the mean ρ over metrics; of the mean metric the mean error, the half width of the 90 % interval
and how often it holds the run; CPU seconds of all folds.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from fitting import fit
from fitting.artifact.spec import Target
from fitting.data.observations import Observations
from fitting.estimators.candidates import MEMBERS
from fitting.selection.cross_validation import spearman
from fitting.selection.forms import Options
from tests.support.tables import swarm

Array = np.ndarray

FOLDS = 5


@dataclass(frozen=True)
class Predicted:
    """Of runs that were left out: losses (n, V), and half widths of the mean loss, (n,)."""

    losses: Array
    half_width: Array


Way = Callable[[Observations, Observations], Predicted]  # from the fitted runs, of the others


def by_laws(*methods: str) -> Way:
    def predict(train: Observations, rest: Observations) -> Predicted:
        weights = np.full(len(train.val_domains), 1 / len(train.val_domains))
        here = Target(float(train.n_params[0]), float(train.tokens[0]))
        fitted = fit.fit(train, weights, here, Options(methods=methods, compare=False))
        place = rest.proportions(), rest.n_params, rest.tokens
        return Predicted(fitted.law.predict(*place), fitted.interval.half_width(weights, *place))

    return predict


def by_trees(train: Observations, rest: Observations) -> Predicted:
    model = HistGradientBoostingRegressor(random_state=0)
    columns = [
        model.fit(train.proportions(), losses).predict(rest.proportions())
        for losses in train.losses.T
    ]
    return Predicted(np.stack(columns, axis=1), np.full(len(rest.losses), np.nan))


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "olmix"
    o = swarm(name)
    fold = np.random.default_rng(0).permutation(len(o.losses)) % FOLDS
    alone = [m for m in MEMBERS if m != "shukor_joint"]  # of one scale: the additive form
    ways: dict[str, Way] = {"weighted sum": by_laws(*MEMBERS)}
    ways |= {method: by_laws(method) for method in alone} | {"histogram boosting": by_trees}
    print(f"{name}: {len(o.losses)} runs, {len(o.domains)} domains, {len(o.val_domains)} metrics")
    print(f"{'':20}median R²  ρ of mean  mean ρ   error  half width  inside  CPU s")
    for label, way in ways.items():
        began = time.process_time()
        losses, half_width = np.empty_like(o.losses), np.empty(len(o.losses))
        with threadpool_limits(1):
            for k in range(FOLDS):
                predicted = way(o.rows(fold != k), o.rows(fold == k))
                losses[fold == k], half_width[fold == k] = predicted.losses, predicted.half_width
        print(
            f"{label:20}{_figures(o.losses, losses, half_width)}{time.process_time() - began:7.1f}"
        )


def _figures(observed: Array, predicted: Array, half_width: Array) -> str:
    error = predicted - observed
    r2 = 1 - (error**2).sum(axis=0) / ((observed - observed.mean(axis=0)) ** 2).sum(axis=0)
    overall = spearman(observed.mean(axis=1), predicted.mean(axis=1))
    each = spearman(observed, predicted).mean()
    miss = np.abs(error.mean(axis=1))
    return (
        f"{np.median(r2):9.4f}{overall:11.4f}{each:8.4f}{miss.mean():8.4f}"
        f"{half_width.mean():12.4f}{(miss < half_width).mean():8.2f}"
    )


if __name__ == "__main__":
    main()

"""Fit the accuracy of tasks with choices to their loss, over all sizes and checkpoints.

The curve is learned where the runs have left chance: docs/math.md, "From losses to accuracies".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.stats import t as student

from fitting.artifact.laws import AccuracyCurve, accuracies
from fitting.data.histories import Guess
from training.record import keys

Array = np.ndarray

DRAWS = 50  # of runs
PROBABILITY = 0.9
LOWEST_LOSSES = 0.25  # share of the evaluations that say whether the runs have left chance
DEVIATIONS = 3.0  # of a guess, above which an accuracy has left chance
SIGNIFICANCE = 0.01  # of the test that the accuracy falls with the loss
LEAST = 12  # evaluations
PRIOR = 0.1  # residual of a ceiling 1 away from that which it is held to
MARGIN = 1e-3  # of the ceiling above chance
WIDTHS = (-6.0, 4.0)  # bounds of the log of the width, relative to the spread of the losses


@dataclass(frozen=True)
class TaskAccuracy:
    """The accuracy of one task in the runs, and its curve or why there is none."""

    task: str
    losses: Array  # (n,)
    accuracies: Array  # (n,)
    guess: Guess
    curve: AccuracyCurve | None
    reason: str  # why there is no curve; empty if there is one


def of_tasks(table: pd.DataFrame, guesses: Mapping[str, Guess]) -> list[TaskAccuracy]:
    """The accuracies of the tasks of a tidy table, each fitted to the task's loss."""
    found = []
    for task, guess in guesses.items():
        columns = [keys.VAL_LOSS + task, keys.ACCURACY + task]
        if set(columns) <= set(table):
            rows = table[["run", *columns]].dropna()
            _, run_of = np.unique(rows["run"].to_numpy(str), return_inverse=True)
            losses, measured = (rows[column].to_numpy(float) for column in columns)
            curve, reason = fit(losses, measured, run_of, guess)
            found.append(TaskAccuracy(task, losses, measured, guess, curve, reason))
    return found


def fit(
    losses: Array, measured: Array, run_of: Array, guess: Guess
) -> tuple[AccuracyCurve | None, str]:
    """The curve of accuracies (n,) over losses (n,) of runs, by their index (n,); or why none.

    There is none where the evaluations with the lowest losses are no better than a guess, and where
    the accuracy does not fall with the loss.
    """
    if len(losses) < LEAST:
        return None, f"{len(losses)} evaluations are too few; it needs {LEAST}"
    low = measured[losses <= np.quantile(losses, LOWEST_LOSSES)].mean()
    if low < guess.chance - DEVIATIONS * guess.deviation:
        return None, (
            f"accuracy {low:.3f} at the lowest losses is below chance, {guess.chance:.3f} ± "
            f"{guess.deviation:.3f}: look at the labels, and at choices of very different length"
        )
    if low < guess.chance + DEVIATIONS * guess.deviation:
        return None, (
            f"the runs are still at chance: accuracy {low:.3f} at the lowest losses, by chance "
            f"{guess.chance:.3f} ± {guess.deviation:.3f} over {guess.questions:,} questions"
        )
    if not _falls(losses, measured, run_of):
        return None, "the accuracy shows no dependence on the loss in these runs"
    highest = max(float(measured.max()), guess.chance + MARGIN)
    curve = _best(losses, measured, guess.chance, (highest + 1) / 2)
    residuals = measured - accuracies(curve, guess.chance, losses)
    return (
        AccuracyCurve(
            chance=guess.chance,
            curve=curve,
            bootstrap=_bootstrap(losses, measured, run_of, guess.chance, highest, curve),
            residual=float((residuals**2).sum()) / max(len(losses) - len(curve), 1),
            quantile=float(student.ppf((1 + PROBABILITY) / 2, max(run_of.max(), 1))),
        ),
        "",
    )


def _falls(losses: Array, measured: Array, run_of: Array) -> bool:
    """Whether the accuracy falls with the loss: a one-sided t test of the slope of a line, with
    errors clustered by run, whose evaluations are not independent."""
    x, y = losses - losses.mean(), measured - measured.mean()
    runs, squares = run_of.max() + 1, float(x @ x)
    if runs < 2 or not squares:
        return False
    slope = float(x @ y) / squares
    scores = np.bincount(run_of, x * (y - slope * x))
    error = np.sqrt((scores**2).sum() * runs / (runs - 1)) / squares
    return bool(slope < -student.ppf(1 - SIGNIFICANCE, runs - 1) * error)


def _bootstrap(
    losses: Array, measured: Array, run_of: Array, chance: float, highest: float, start: Array
) -> Array:
    """The curve of draws of runs with replacement, (B, 3). Each draw is held to a ceiling of its
    own between the highest accuracy seen and 1, for the runs may not tell it."""
    rng, runs = np.random.default_rng(0), run_of.max() + 1
    curves = []
    for ceiling in rng.permutation(np.linspace(highest, 1, DRAWS)):
        weights = np.bincount(rng.integers(0, runs, runs), minlength=runs)[run_of]
        begin = np.array([ceiling, *start[1:]])
        curves.append(_fit(losses, measured, weights, chance, ceiling, begin))
    return np.array(curves)


def _best(losses: Array, measured: Array, chance: float, ceiling: float) -> Array:
    """The curve with the least squares, from several starts."""
    ones = np.ones(len(losses))
    lowest, spread = losses.min(), max(np.ptp(losses), 1e-9)
    fits = [
        _fit(
            losses, measured, ones, chance, ceiling, np.array([ceiling, lowest + at * spread, log])
        )
        for at in (-0.5, 0.0, 0.5)
        for log in np.log(spread) + np.log([0.1, 0.5])
    ]
    errors = [((measured - accuracies(curve, chance, losses)) ** 2).sum() for curve in fits]
    return fits[int(np.argmin(errors))]


def _fit(
    losses: Array, measured: Array, weights: Array, chance: float, ceiling: float, start: Array
) -> Array:
    roots, unit = np.sqrt(weights), np.log(max(np.ptp(losses), 1e-9))

    def residuals(curve: Array) -> Array:
        away = roots * (measured - accuracies(curve, chance, losses))
        return np.append(away, PRIOR * (ceiling - curve[0]))

    bounds = (
        [chance + MARGIN, -np.inf, unit + WIDTHS[0]],
        [1.0 + MARGIN, np.inf, unit + WIDTHS[1]],
    )
    return np.asarray(least_squares(residuals, np.clip(start, *bounds), bounds=bounds).x)

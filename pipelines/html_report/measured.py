"""What trained models measured, as the report shows it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from optimization.mixture.solve import BEST, DEFAULT
from pipelines.html_report.lineage import Lineage
from pipelines.proof.verdict import EARLIER, Earlier, Gain, Proof
from training.record import keys
from training.record.errors import InputError
from training.record.history import history_from_tags
from training.record.intervals import t_quantile
from training.record.mlflow_runs import in_unit

Weights = Mapping[str, float]
NORMAL = 1.644  # no quantile of Student's t, for the 90 % interval, is smaller


@dataclass(frozen=True)
class Curve:
    """The weighted loss of a model over its tokens."""

    label: str  # the mixture's name, or the run's
    run_id: str  # empty where it is not of one run
    tokens: tuple[float, ...]
    losses: tuple[float, ...]


def runs_of(losses: pd.DataFrame) -> dict[str, Run]:
    """The targets of a verify run's table that still exist, by id."""
    found = {}
    for run_id in losses.get("run_id", pd.Series(dtype=str)).unique():
        with suppress(MlflowException):
            found[str(run_id)] = mlflow.get_run(run_id)
    return found


def proof(
    found: Lineage, losses: pd.DataFrame, targets: Mapping[str, Run], weights: Weights, unit: str
) -> Proof | None:
    """What the trained targets prove, as `verify` computed it; None if nothing is verified."""
    if found.verify is None or losses.empty:
        return None
    metrics = found.verify.data.metrics
    if not {"gain_high", "predicted_gain_high", "seed_spread"} <= set(metrics):
        return None  # an older version logged less
    gains = {
        name: Gain(metrics[name], metrics[f"{name}_high"] - metrics[name])
        for name in ("gain", "predicted_gain")
    }
    to_default = metrics.get("steps_to_default")
    lengths = [int(run.data.params.get("max_steps", 0)) for run in targets.values()]
    steps = max(lengths, default=0)
    if to_default is not None:
        steps = round(to_default + metrics["steps_saved"])
    return Proof(
        table=losses,
        gain=gains["gain"],
        predicted=gains["predicted_gain"],
        seed_spread=metrics["seed_spread"],
        earlier=_earlier(found.verify),
        steps=steps,
        steps_to_default=to_default,
        searched_for=found.search.data.params.get("minimised", "loss") if found.search else "loss",
        error=metrics.get("largest_relative_error", float("nan")),
        unit=unit,
        weights=weights,
    )


def _earlier(verify: Run) -> Earlier | None:
    with suppress(MlflowException, KeyError):
        run = mlflow.get_run(verify.data.tags[EARLIER])
        objective = verify.data.metrics["earlier_objective"]
        return Earlier(str(run.info.run_name), run.info.run_id, objective)
    return None


def seed_error(targets: pd.DataFrame, column: str = "measured") -> tuple[float, int]:
    """The standard deviation of a measurement between seeds, pooled over the mixtures, and its
    degrees of freedom; nan and 0 if no mixture has two seeds."""
    groups = targets.groupby("mixture")[column]
    degrees = int((groups.count() - 1).sum())
    if not degrees:
        return math.nan, 0
    squares = float(((targets[column] - groups.transform("mean")) ** 2).sum())
    return math.sqrt(squares / degrees), degrees


def half_width(targets: pd.DataFrame, column: str = "measured") -> float:
    """Half the 90 % interval of the difference between the best and the default mixture; nan if no
    mixture has two seeds."""
    error, degrees = seed_error(targets, column)
    counts = targets["mixture"].value_counts()
    apart = math.sqrt(1 / counts[BEST] + 1 / counts[DEFAULT])
    return t_quantile(degrees) * error * apart if degrees else math.nan


def seeds_needed(error: float, gain: float) -> int:
    """How many seeds of each of two mixtures make the 90 % interval of their difference exclude 0,
    if it is measured as `gain` > 0; `error` is the standard deviation between seeds."""
    fewest = int(2 * (NORMAL * error / gain) ** 2)  # with the error known
    return next(
        n
        for n in itertools.count(max(2, fewest))
        if t_quantile(2 * (n - 1)) * error * math.sqrt(2 / n) <= gain
    )


def weighed(targets: pd.DataFrame, weights: Weights) -> pd.DataFrame:
    """The targets with `measured` by other weights; nan where a loss was not measured."""
    return targets.assign(measured=_weighted(targets, "measured/", weights))


def held_out(table: pd.DataFrame, weights: Weights) -> pd.DataFrame:
    """Columns run, n_params, observed and predicted: the weighted losses of each run's last
    evaluation, predicted by the law without its mixture."""
    if table.empty:
        return table
    return pd.DataFrame(
        {
            "run": table["run"],
            keys.N_PARAMS: table[keys.N_PARAMS],
            **{kind: _weighted(table, f"{kind}/", weights) for kind in ("observed", "predicted")},
        }
    )


def of_targets(
    losses: pd.DataFrame, targets: Mapping[str, Run], weights: Weights, unit: str
) -> tuple[Curve, ...]:
    """The curves of the targets on the best and the default mixture, mean over their seeds."""
    curves = []
    for name in (BEST, DEFAULT) if len(losses) else ():
        histories = []
        for run_id in losses.loc[losses["mixture"] == name, "run_id"]:
            run = targets.get(run_id)
            history = history_from_tags(run.data.tags) if run else None
            with suppress(InputError):
                if run is not None and history is not None:
                    histories.append(in_unit(run, history, unit))
        if histories and len({history.tokens for history in histories}) == 1:
            rows = np.mean([history.losses for history in histories], axis=0)
            table = pd.DataFrame(rows, columns=[keys.VAL_LOSS + d for d in histories[0].domains])
            values = _weighted(table, keys.VAL_LOSS, weights)
            curves.append(Curve(name, "", histories[0].tokens, tuple(values.tolist())))
    return tuple(curves)


def of_proxies(
    evaluations: pd.DataFrame, weights: Weights, fitted: Sequence[Run]
) -> tuple[Curve, ...]:
    """The curves of the fitted runs."""
    names = {run.info.run_id: str(run.info.run_name) for run in fitted}
    curves = []
    for run_id, rows in evaluations.groupby("run", sort=False):
        values = _weighted(rows, keys.VAL_LOSS, weights)
        known = np.isfinite(values)
        tokens = rows[keys.TOKENS].to_numpy(float)[known]
        if len(tokens):
            label, losses = names.get(str(run_id), str(run_id)), values[known].tolist()
            curves.append(Curve(label, str(run_id), tuple(tokens.tolist()), tuple(losses)))
    return tuple(curves)


def _weighted(table: pd.DataFrame, prefix: str, weights: Weights) -> np.ndarray:
    """The weighted sum of a table's losses, (rows,); `objective` where the law knows that alone."""
    if f"{prefix}objective" in table:
        return table[f"{prefix}objective"].to_numpy(float)
    used = [(name, weight) for name, weight in weights.items() if weight]
    if any(prefix + name not in table for name, _ in used):
        return np.full(len(table), np.nan)
    return np.sum([w * table[prefix + name].to_numpy(float) for name, w in used], axis=0)

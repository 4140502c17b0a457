"""Log a search to its MLflow run: params, metrics, tables and figures."""

import time

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag

from optimization.mixture import landscape_plots, ternary_plot, trial_plots
from optimization.mixture.sensitivity import Sensitivity, loss_curves
from optimization.mixture.solve import BEST, Answer
from optimization.search.search import Front, SearchResult
from training.record import keys
from training.record.secrets import masked

Array = np.ndarray


def log(answer: Answer, *, trials_below: mlflow.ActiveRun | None = None) -> None:
    """Log an answer to the active run, and each trial as a child of `trials_below`, if given."""
    problem, predictor = answer.problem, answer.predictor
    mlflow.log_params(
        {
            **keys.with_prefix(keys.MIXTURE, answer.best),
            **keys.with_prefix(
                keys.WEIGHT, dict(zip(predictor.val_domains, answer.weights.tolist(), strict=True))
            ),
            "model_uri": masked(predictor.uri),
            keys.TARGET_N_PARAMS: predictor.n_params,
            keys.TARGET_TOKENS: predictor.tokens,
            keys.LOSS_UNIT: predictor.unit,
            "minimised": ",".join(problem.objectives),
            "pull_strength": answer.pull,
            "compared_with": answer.compared,
            "n_trials": len(answer.search.trials),
        }
    )
    mlflow.log_metrics(_metrics(answer))
    mlflow.log_dict(answer.best, "best_mixture.json")
    for name, table in _tables(answer).items():
        mlflow.log_table(table, f"{name}.json")
    for name, figure in _figures(answer).items():
        mlflow.log_figure(figure, f"figures/{name}.png")
    if trials_below:
        _log_children(answer, trials_below)


def _metrics(answer: Answer) -> dict[str, float]:
    metrics = {"gain": answer.gain}
    half = answer.gain_half_width
    metrics |= {"gain_low": answer.gain - half, "gain_high": answer.gain + half}
    for name, p in answer.predictions.items():
        key = name.replace(" ", "_")
        metrics[f"objective/{key}"] = answer.loss(name)
        metrics[f"distance/{key}"] = p.distance
        metrics |= {f"predicted/{key}/{d}": loss for d, loss in p.losses.items()}
        metrics |= {f"predicted_accuracy/{key}/{t}": x for t, x in p.accuracies.items()}
    steps, result, sensitivity = answer.steps, answer.search, answer.sensitivity
    if steps is not None:
        shares = {"steps_fewer": steps.fewer, "steps_more": steps.more}
        metrics |= {name: share for name, share in shares.items() if share is not None}
    if isinstance(result, SearchResult):
        metrics["least"] = result.value
        if result.bound is not None:
            metrics |= {"certified_bound": result.bound, "gap": result.value - result.bound}
    if sensitivity is not None:
        metrics["regret"] = float(sensitivity.regrets.mean())
        for domain, lowest, highest in sensitivity.ranges.itertuples(index=False):
            metrics |= {f"lowest/{domain}": lowest, f"highest/{domain}": highest}
    return metrics


def _tables(answer: Answer) -> dict[str, pd.DataFrame]:
    tables = {"trials": answer.search.trials, "compared": _compared(answer)}
    if answer.path is not None:
        tables["pull"] = answer.path
    sensitivity = answer.sensitivity
    if sensitivity is not None:
        tables |= {
            "near_optimal": sensitivity.ranges,
            "sensitivity_to_weights": sensitivity.by_weight,
            "optimum_by_scale": sensitivity.by_scale,
            "optimum_by_replicate": pd.DataFrame(
                sensitivity.optima, columns=answer.allowed.columns
            ).assign(regret=sensitivity.regrets),
        }
    return {name: table for name, table in tables.items() if len(table)}


def _compared(answer: Answer) -> pd.DataFrame:
    """A row for each compared mixture: its proportions and predicted losses with intervals, and
    what its objective lies above the best mixture's."""
    rows = []
    for name, mixture in answer.mixtures.items():
        p = answer.predictions[name]
        low, high = answer.interval(name)
        above, half = answer.above_best(name)
        rows.append(
            {
                "mixture": name,
                **keys.with_prefix(keys.MIXTURE, mixture),
                "objective": answer.loss(name),
                "objective_low": low,
                "objective_high": high,
                "difference": above,
                "difference_low": above - half,
                "difference_high": above + half,
                "distance": p.distance,
                **keys.with_prefix(keys.VAL_LOSS, p.losses),
                **keys.with_prefix(keys.VAL_LOSS_LOW, p.losses_low),
                **keys.with_prefix(keys.VAL_LOSS_HIGH, p.losses_high),
                **keys.with_prefix(keys.ACCURACY, p.accuracies),
                **keys.with_prefix(keys.ACCURACY_LOW, p.accuracies_low),
                **keys.with_prefix(keys.ACCURACY_HIGH, p.accuracies_high),
            }
        )
    return pd.DataFrame(rows)


def _figures(answer: Answer) -> dict[str, Figure]:
    losses = {name: p.losses for name, p in answer.predictions.items()}
    intervals = {
        name: {d: (p.losses_low[d], p.losses_high[d]) for d in p.losses}
        for name, p in answer.predictions.items()
    }
    domains, result = answer.predictor.domains, answer.search
    trials, unit = _by_domain(result.trials), answer.predictor.unit
    above = {name: answer.above_best(name) for name in answer.mixtures}
    figures = {
        "best_mixture": trial_plots.mixtures(answer.mixtures, losses, intervals, above, unit)
    }
    if isinstance(result, Front):
        names = list(result.objectives)
        chosen = result.trials.iloc[result.chosen][names]
        figures["pareto"] = trial_plots.pareto(result.trials, names, {BEST: dict(chosen)}, unit)
        trials["objective"] = result.trials[names[0]]
    else:
        figures["trials"] = trial_plots.trials(result.trials, unit)
    figures["parallel_coordinates"] = trial_plots.parallel_coordinates(
        trials, domains, answer.best, unit
    )
    if len(domains) == 3:
        figures["map"] = ternary_plot.ternary(
            lambda mixtures: _allowed_loss(answer, mixtures),
            domains,
            {name: list(mixture.values()) for name, mixture in answer.mixtures.items()},
            answer.predictor.fitted,
            unit,
        )
    if answer.path is not None:
        figures["pull"] = landscape_plots.pull_path(answer.path, answer.pull, unit)
    if answer.sensitivity is not None:
        figures |= _sensitivity_figures(answer, answer.sensitivity)
    return figures


def _sensitivity_figures(answer: Answer, sensitivity: Sensitivity) -> dict[str, Figure]:
    predictor, best = answer.predictor, answer.best
    domains = list(predictor.domains)
    curves = loss_curves(predictor, answer.weights, answer.allowed, answer.differences)
    figures = {
        "near_optimal": landscape_plots.near_optimal(sensitivity.ranges, answer.mixtures),
        "loss_against_proportions": landscape_plots.loss_against_proportions(
            curves, best, predictor.unit
        ),
        "sensitivity": landscape_plots.sensitivity(
            sensitivity.optima, sensitivity.by_weight, best, predictor.unit
        ),
    }
    if len(sensitivity.by_scale) > 1:
        figures["optimum_by_scale"] = landscape_plots.optima_by_scale(
            _by_domain(sensitivity.by_scale), domains
        )
    return figures


def _by_domain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `<domain>` for `mixture/<domain>`, n_params, tokens and objective."""
    columns = [
        c for c in table if c.startswith(keys.MIXTURE) or c in ("n_params", "tokens", "objective")
    ]
    return table[columns].rename(columns=lambda name: name.removeprefix(keys.MIXTURE))


def _allowed_loss(answer: Answer, mixtures: Array) -> Array:
    """The predicted weighted loss, (n,); NaN for a mixture that breaks a constraint."""
    values = answer.predictor.surface.predict(mixtures) @ answer.weights
    return np.where(answer.allowed.inside(mixtures), values, np.nan)


def _log_children(answer: Answer, parent: mlflow.ActiveRun) -> None:
    """Create a child run for each trial, with its mixture and its values."""
    client = mlflow.MlflowClient()
    columns = answer.allowed.columns
    for row in answer.search.trials.to_dict("records"):
        run = client.create_run(
            parent.info.experiment_id,
            tags={keys.STAGE: keys.TRIAL, keys.PARENT: parent.info.run_id},
            run_name=f"trial-{row['trial']:03d}",
        )
        values = {
            key: float(value)
            for key, value in row.items()
            if key not in ("trial", "kind", "on_front") and key not in columns
        }
        now = int(time.time() * 1000)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in values.items()],
            params=[Param(column, str(row[column])) for column in columns],
            tags=[RunTag("kind", str(row["kind"]))],
        )
        client.set_terminated(run.info.run_id)

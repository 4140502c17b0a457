"""The proof of a mixture: train the target on it and on the default, beside the predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd

from optimization.domain.differences import Differences
from optimization.domain.objective import weighted
from optimization.domain.predictor import Predictor
from optimization.mixture.solve import BEST, DEFAULT, Answer, Mixture
from pipelines.proof import plots, verdict
from pipelines.proof.verdict import Earlier, Gain, Proof
from pipelines.runs.proxy_runs import train_missing
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training.engine.devices import Machines
from training.record import keys
from training.record.history import History, history_from_tags
from training.record.intervals import t_quantile
from training.record.mixtures import checked_mixture, mixture_key
from training.record.mlflow_runs import in_unit, read_history, search
from training.run import Run

Array = np.ndarray
NAMES = "target-"  # the prefix of the targets' names


def target_runs(prepared: Prepared, mixtures: dict[str, Mixture]) -> dict[str, Run]:
    """The targets to train: default and best with every seed, the others with the first seed."""
    seeds, domains = prepared.study.target.seeds, list(prepared.study.domains)
    return {
        f"{name}-{seed}": prepared.target(
            f"{NAMES}{name.replace(' ', '-')}-seed{seed}",
            checked_mixture(mixture, domains, name),
            seed,
        )
        for name, mixture in mixtures.items()
        for seed in (seeds if name in (BEST, DEFAULT) else seeds[:1])
    }


def prove(
    prepared: Prepared,
    predictor: Predictor,
    mixtures: dict[str, Mixture],
    machines: Machines,
    active: mlflow.ActiveRun,
) -> Proof:
    """Train the targets and compare them with the predictions; `mixtures` has best and default."""
    study = prepared.study
    planned = target_runs(prepared, mixtures)
    run_ids = train_missing(prepared, list(planned.values()), machines, keys.VERIFY, active)
    unit = predictor.unit
    histories = {key: read_history(run_ids[run.name], unit) for key, run in planned.items()}
    weights = np.array([predictor.spec.val_weights[d] for d in study.evaluated])
    earlier = _earlier(prepared, weights, mixtures, active, unit)
    rows = []
    for key, run in planned.items():
        name = _name(key)
        prediction = predictor.predict_one(run.mixture)
        losses = dict(zip(histories[key].domains, histories[key].losses[-1], strict=True))
        rows.append(
            {
                "mixture": name,
                "seed": run.seed,
                "measured": float(_objective(histories[key], weights)[-1]),
                "predicted": prediction.objective,
                "low": prediction.low,
                "high": prediction.high,
                **{f"measured/{d}": losses[d] for d in study.evaluated},
                **{f"predicted/{d}": x for d, x in prediction.losses.items() if d in losses},
                **{
                    f"measured_accuracy/{task}": values[-1]
                    for task, values in histories[key].accuracies.items()
                },
                **{f"predicted_accuracy/{t}": x for t, x in prediction.accuracies.items()},
                "run_id": run_ids[run.name],
            }
        )
    targets = pd.DataFrame(rows)
    arrays = {n: np.array([mixtures[n][d] for d in predictor.domains]) for n in (BEST, DEFAULT)}
    differences = Differences.of(predictor, weighted(predictor, predictor.weights), arrays[BEST])
    default = arrays[DEFAULT][None]
    predicted = Gain(float(differences.mean(default)[0]), float(differences.half_width(default)[0]))
    noise = differences.quantile * math.sqrt(2 * differences.residual)
    measured = _measured_gain(targets, noise)
    proof = _proof(study, targets, histories, weights, (measured, predicted), earlier, unit)
    _log(proof, histories, weights)
    return proof


def to_train(answer: Answer) -> dict[str, Mixture]:
    """The mixtures of an answer to train: best, default, and the others that satisfy the
    constraints of the search."""
    return {
        name: mixture
        for name, mixture in answer.mixtures.items()
        if name in (BEST, DEFAULT) or not answer.broken_rule(name)
    }


def _proof(
    study: Study,
    table: pd.DataFrame,
    histories: dict[str, History],
    weights: Array,
    gains: tuple[Gain, Gain],
    earlier: Sequence[Earlier],
    unit: str,
) -> Proof:
    means = table.groupby("mixture")["measured"].mean()
    predicted = table.groupby("mixture")["predicted"].first()
    spread = table.groupby("mixture")["measured"].agg(np.ptp).max()
    best, default = (_mean_curve(histories, name, weights) for name in (BEST, DEFAULT))
    steps = next(iter(histories.values())).steps
    before = min(earlier, key=lambda target: target.objective, default=None)
    return Proof(
        table=table,
        gain=gains[0],
        predicted=gains[1],
        seed_spread=float(spread),
        earlier=before if before and before.objective < means[BEST] else None,
        steps=study.target.steps,
        steps_to_default=steps_to(steps, best, default[-1]) if gains[0].value > 0 else None,
        searched_for=study.search.objective,
        error=float((np.abs(predicted - means) / means).max()),
        unit=unit,
        weights=dict(zip(study.evaluated, weights.tolist(), strict=True)),
    )


def _measured_gain(table: pd.DataFrame, unmeasured: float) -> Gain:
    """Default − best, mean over seeds; the noise of one run is pooled over all mixtures' seeds.

    With one seed for each mixture the noise was not measured, and `unmeasured` is the half width.
    """
    by_mixture = table.groupby("mixture")["measured"]
    means, counts = by_mixture.mean(), by_mixture.count()
    gain = float(means[DEFAULT] - means[BEST])
    degrees = int((counts - 1).sum())  # of freedom
    if not degrees:
        return Gain(gain, unmeasured)
    squares = ((table["measured"] - by_mixture.transform("mean")) ** 2).sum()
    error = np.sqrt(squares / degrees * (1 / counts[BEST] + 1 / counts[DEFAULT]))
    return Gain(gain, float(t_quantile(degrees) * error))


def _earlier(
    prepared: Prepared,
    weights: Array,
    mixtures: Mapping[str, Mixture],
    active: mlflow.ActiveRun,
    unit: str,
) -> list[Earlier]:
    """Targets of the study in the experiment, as large and as long as its target, on mixtures other
    than these; one entry per mixture, its objective the mean over seeds."""
    study = prepared.study
    domains = list(study.domains)
    query = (
        f"attributes.status = 'FINISHED' and tags.{keys.STAGE} = '{keys.TARGET}' and "
        f"tags.{keys.STUDY} = '{prepared.tag}' and attributes.run_name LIKE '{NAMES}%' and "
        f"params.{keys.N_PARAMS} = '{study.size(study.target.size).n_params}'"
    )
    current = {mixture_key(mixture, domains) for mixture in mixtures.values()}
    by_mixture: dict[tuple[float, ...], list[Earlier]] = {}
    for run in search([active.info.experiment_id], query):
        history = history_from_tags(run.data.tags)
        if history is None or history.tokens[-1] != study.target_tokens():
            continue
        mixture = keys.without_prefix(keys.MIXTURE, run.data.params)
        key = mixture_key(mixture, domains)
        if key in current or study.broken_rule(mixture):
            continue
        order = [history.domains.index(d) for d in study.evaluated]
        losses = in_unit(run, history, unit).losses[-1]
        loss = float(np.array(losses)[order] @ weights)
        target = Earlier(str(run.info.run_name), run.info.run_id, loss)
        by_mixture.setdefault(key, []).append(target)
    return [
        replace(targets[0], objective=float(np.mean([target.objective for target in targets])))
        for targets in by_mixture.values()
    ]


def steps_to(steps: Sequence[int], values: Array, objective: float) -> float | None:
    """The step from which on values (n,) are at most an objective, interpolated between
    evaluations; None if the last value is above it."""
    above = np.flatnonzero(values > objective)
    if not len(above):
        return float(steps[0])
    last = int(above[-1])
    if last == len(values) - 1:
        return None
    ends = slice(last, last + 2)
    return float(np.interp(-objective, -values[ends], steps[ends]))


def _mean_curve(histories: Mapping[str, History], name: str, weights: Array) -> Array:
    """The objective of a mixture over the evaluations, mean over its seeds, (n,)."""
    curves = [_objective(h, weights) for key, h in histories.items() if _name(key) == name]
    return np.asarray(np.mean(curves, axis=0))


def _name(key: str) -> str:
    """The mixture's name in a run's key, `<name>-<seed>`."""
    return key.rsplit("-", 1)[0]


def _objective(history: History, weights: Array) -> Array:
    return np.array(history.losses) @ weights


def _log(proof: Proof, histories: dict[str, History], weights: Array) -> None:
    table = proof.table
    metrics = {
        **verdict.metrics(proof),
        "seed_spread": proof.seed_spread,
        "largest_relative_error": proof.error,
    }
    if proof.steps_to_default is not None:
        metrics["steps_to_default"] = proof.steps_to_default
        metrics["steps_saved"] = proof.steps - proof.steps_to_default
    if proof.earlier is not None:
        metrics["earlier_objective"] = proof.earlier.objective
        mlflow.set_tag(verdict.EARLIER, proof.earlier.run_id)
    groups = list(table.groupby("mixture", sort=False))
    for name, rows in groups:
        for column in table.columns[2:-1]:  # all but the names and the run id
            kind, _, domain = column.partition("/")
            key = "/".join(filter(None, (kind, str(name).replace(" ", "_"), domain)))
            metrics[key] = float(rows[column].mean())
    mlflow.log_metrics(metrics)
    mlflow.log_table(table, "measured_beside_predicted.json")
    measured = {str(name): rows["measured"].tolist() for name, rows in groups}
    predicted = {
        str(name): (row["predicted"], row["low"], row["high"])
        for name, rows in groups
        for row in [rows.iloc[0]]
    }
    curves = {
        key.replace("-", ", seed "): (history.tokens, _objective(history, weights).tolist())
        for key, history in histories.items()
    }
    for name, figure in (
        ("measured_beside_predicted", plots.proof(measured, predicted, proof.unit)),
        ("loss_curves", plots.loss_curves(curves, proof.unit)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")

"""`verify`: train the target on the default and the best mixture; measured beside predicted."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd

from optimization import model as predictors
from optimization import proof_plots as plots
from optimization.answer import BEST, DEFAULT, Mixture
from optimization.model import Predictor
from pipelines import entry, parameters, preflight, problem
from pipelines import study_file as studies
from pipelines.optimize import champion, optimize
from pipelines.prepare import prepare
from pipelines.study import Study
from pipelines.sweep import train_missing
from training import kernels, record
from training.corpus import Corpus
from training.devices import Machines
from training.errors import InputError
from training.record import History
from training.settings import Run

Array = np.ndarray


@dataclass(frozen=True)
class Proof:
    """What the trained targets say of the prediction."""

    table: pd.DataFrame  # a row a target: mixture, seed, measured and predicted objective
    gain: float  # default − best, mean over seeds, nats per token
    seed_spread: float  # largest difference between two seeds of one mixture
    steps: int
    steps_to_default: float | None  # of the best mixture, to reach the default's final objective
    error: float  # largest |predicted − measured| / measured over the mixtures


def target_runs(plan: Study, corpus: Corpus, mixtures: dict[str, Mixture]) -> dict[str, Run]:
    """The targets to train: default and best with every seed, the others with the first."""
    return {
        f"{name}-{seed}": plan.run(
            corpus,
            f"target-{name.replace(' ', '-')}-seed{seed}",
            record.checked_mixture(mixture, list(plan.domains), name),
            size=plan.target.size,
            seed=seed,
            stage=record.TARGET,
            steps=plan.target.steps,
        )
        for name, mixture in mixtures.items()
        for seed in (plan.target.seeds if name in (BEST, DEFAULT) else plan.target.seeds[:1])
    }


def verify(
    plan: Study,
    corpus: Corpus,
    predictor: Predictor,
    mixtures: dict[str, Mixture],
    machines: Machines,
) -> Proof:
    """Train the targets and compare them with the predictions; `mixtures` has best and default."""
    planned = target_runs(plan, corpus, mixtures)
    run_ids = train_missing(plan, corpus, list(planned.values()), machines, record.VERIFY)
    histories = {key: _history(run_ids[run.name]) for key, run in planned.items()}
    weights = np.array([predictor.metadata["weights"][d] for d in plan.domains])
    rows = []
    for key, run in planned.items():
        name = key.rsplit("-", 1)[0]
        prediction = predictor.ask(run.mixture)
        losses = dict(zip(histories[key].domains, histories[key].losses[-1], strict=True))
        rows.append(
            {
                "mixture": name,
                "seed": run.seed,
                "measured": float(_objective(histories[key], weights)[-1]),
                "predicted": prediction.objective,
                "low": prediction.low,
                "high": prediction.high,
                **{f"measured/{d}": losses[d] for d in plan.domains},
                **{f"predicted/{d}": x for d, x in prediction.losses.items() if d in losses},
                "run_id": run_ids[run.name],
            }
        )
    table = pd.DataFrame(rows)
    proof = _proof(plan, table, histories, weights)
    _log(proof, histories, weights)
    return proof


def _proof(
    plan: Study, table: pd.DataFrame, histories: dict[str, History], weights: Array
) -> Proof:
    means = table.groupby("mixture")["measured"].mean()
    predicted = table.groupby("mixture")["predicted"].first()
    spread = table.groupby("mixture")["measured"].agg(np.ptp).max()
    first = plan.target.seeds[0]
    best, default = histories[f"{BEST}-{first}"], histories[f"{DEFAULT}-{first}"]
    return Proof(
        table=table,
        gain=float(means[DEFAULT] - means[BEST]),
        seed_spread=float(spread),
        steps=plan.target.steps,
        steps_to_default=_steps_to(best, weights, float(_objective(default, weights)[-1])),
        error=float((np.abs(predicted - means) / means).max()),
    )


def _steps_to(history: History, weights: Array, objective: float) -> float | None:
    """The first step at which a run's objective is at most a value, between its evaluations."""
    values = _objective(history, weights)
    reached = np.flatnonzero(values <= objective)
    if not len(reached):
        return None
    after = int(reached[0])
    before = max(0, after - 1)
    ends = slice(before, after + 1)
    return float(np.interp(-objective, -values[ends], history.steps[ends]))


def _objective(history: History, weights: Array) -> Array:
    return np.array(history.losses) @ weights


def _history(run_id: str) -> History:
    run = mlflow.get_run(run_id)
    history = record.history_from_tags(run.data.tags)
    if history is None:
        raise InputError(
            f"target run {run.info.run_name} has no history: {run.data.tags.get(record.ERROR)}"
        )
    return history


def report(proof: Proof) -> list[str]:
    """Measured beside predicted, and what it means in steps."""
    lines = [f"{'target on':<14}{'predicted':>11}{'measured':>10}   seeds"]
    best = proof.table.loc[proof.table["mixture"] == BEST, "measured"].mean()
    for name, rows in proof.table.groupby("mixture", sort=False):
        seeds, mean = ", ".join(f"{x:.4f}" for x in rows["measured"]), rows["measured"].mean()
        tied = name != BEST and abs(mean - best) <= proof.seed_spread
        lines.append(
            f"{name:<14}{rows['predicted'].iloc[0]:>11.4f}{mean:>10.4f}   {seeds}"
            + ("   (no further from best than two seeds)" if tied else "")
        )
    lines.append(
        f"gain over the default: {proof.gain:.4f} nats/token (two seeds differ by up to "
        f"{proof.seed_spread:.4f}); predictions within {100 * proof.error:.1f} % of measured"
    )
    if proof.steps_to_default is None:
        lines.append("the best mixture did not reach the default's final loss")
    else:
        saved = 100 * (1 - proof.steps_to_default / proof.steps)
        lines.append(
            f"the best mixture reaches the default's final loss after "
            f"{proof.steps_to_default:.0f} of {proof.steps} steps: {saved:.0f} % saved"
        )
    return lines


def _log(proof: Proof, histories: dict[str, History], weights: Array) -> None:
    table = proof.table
    metrics = {
        "gain": proof.gain,
        "seed_spread": proof.seed_spread,
        "largest_relative_error": proof.error,
    }
    if proof.steps_to_default is not None:
        metrics["steps_to_default"] = proof.steps_to_default
        metrics["steps_saved"] = proof.steps - proof.steps_to_default
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
        ("measured_beside_predicted", plots.proof(measured, predicted)),
        ("loss_curves", plots.loss_curves(curves)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")
        plt.close(figure)


def main(
    study: str, model: str, mixture: str, trials: str, workers: str, ranks: str, hostfile: str
) -> None:
    plan = studies.load(study)
    processes = entry.machines(workers, ranks, hostfile)
    preflight.training(plan, processes, [plan.target.size])
    n_params, tokens = plan.size(plan.target.size).n_params, plan.target_tokens()
    predictor = predictors.load(model or champion(plan.model), n_params, tokens, record.NATS)
    problem.refuse_other_domains(plan, predictor)
    if set(predictor.val_domains) != set(plan.domains):
        raise InputError(
            f"model {predictor.uri} predicts {', '.join(predictor.val_domains)}; a target is "
            f"measured on the study's domains, {', '.join(plan.domains)}"
        )
    given = parameters.mixture(mixture, predictor.domains) if mixture else None
    if trials:
        parameters.integer("trials", trials, least=1)
    kernels.build_for(processes)
    corpus = prepare(plan)
    wanted = problem.with_parameters(
        problem.of_study(plan, predictor, corpus), predictor, plan, trials=trials
    )
    with entry.stage(record.OPTIMIZE):
        mixtures = {**optimize(predictor, wanted).mixtures, DEFAULT: plan.default(corpus)}
    if given:
        mixtures[BEST] = given
    print("\n".join(report(verify(plan, corpus, predictor, mixtures, processes))))


if __name__ == "__main__":
    entry.main(
        record.VERIFY,
        main,
        entry.arguments(
            __doc__,
            study="quickstart",
            model="",
            mixture="",
            trials="",
            workers="auto",
            ranks="1",
            hostfile="",
        ),
    )

"""`schedule`: plan a mixture that changes while a model trains, and prove it by training."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from fitting import laws, phases, registry
from fitting.phase_table import PhaseRuns
from fitting.phases import ScheduleFit
from optimization import schedule as search
from optimization import schedule_plots as plots
from optimization.schedule import CONSTANT, JOINT, Plan, SchedulePredictor
from optimization.schedule_report import report
from pipelines import entry, phase_runs, schedules
from pipelines import study as studies
from pipelines.phase_runs import last_losses
from pipelines.prepare import prepare
from pipelines.sections import Phases
from pipelines.study import Study
from pipelines.sweep import train_missing
from training import record, tracking
from training.corpus import Corpus
from training.devices import Machines
from training.errors import InputError
from training.settings import Phase

Array = np.ndarray
PROBABILITY = 0.9


@dataclass(frozen=True)
class Proof:
    """The schedule and the best constant mixture, trained with the same seeds."""

    table: pd.DataFrame  # way, seed, run_id, objective, val_loss/<domain>…; in the seeds' order
    gain: float  # of the schedule, mean over the seeds, nats per token
    half_width: float  # of its 90 % interval, by the seeds' differences

    def measured(self) -> dict[str, list[float]]:
        """Objectives of each way, in the seeds' order."""
        return {str(way): rows["objective"].tolist() for way, rows in self.table.groupby("way")}

    @property
    def verdict(self) -> str:
        """Whether the schedule won."""
        told = (
            f"{self.gain:+.4f} ± {self.half_width:.4f} nats/token over {len(self.table) // 2} seeds"
        )
        if self.gain - self.half_width > 0:
            return f"trained, the schedule is better than the best constant mixture: {told}"
        if self.gain + self.half_width < 0:
            return f"trained, the schedule is worse than the best constant mixture: {told}"
        return f"trained, the schedule does not beat the best constant mixture: {told}"


def fit(plan: Study, corpus: Corpus, asked: Phases, machines: Machines) -> ScheduleFit:
    """Train the proxies of every phase and fit the law to them."""
    table = phase_runs.train(plan, corpus, asked, machines)
    mlflow.log_text(table.to_csv(index=False), "phases.csv")
    tokens = np.cumsum(asked.steps) * plan.training.tokens_per_step
    weights = np.array([*plan.weights().values()])
    return phases.fit(PhaseRuns.from_table(table, tokens.astype(float)), weights)


def register(fitted: ScheduleFit, name: str, n_params: int) -> registry.Registered:
    """Register the predictor; its error is that of whole schedules with a mixture left out."""
    runs = fitted.runs
    spec = {
        "domains": list(runs.domains),
        "val_domains": list(runs.val_domains),
        "weights": fitted.weights.tolist(),
        "n_params": n_params,
        "law": laws.to_json(fitted.law),
        "replicates": [laws.to_json(law) for law in fitted.replicates],
        "residual": fitted.residual,
        "quantile": float(student.ppf((1 + PROBABILITY) / 2, len(runs.mixtures) - 1)),
        "mixtures": runs.mixtures.tolist(),
    }
    return registry.register_schedule(name, spec, fitted.residual)


def prove(plan: Study, corpus: Corpus, asked: Phases, found: Plan, machines: Machines) -> Proof:
    """Train the schedule and the best constant mixture with every seed."""
    domains = found.predictor.domains
    planned = {
        (name, seed): phase_runs.run(
            plan,
            corpus,
            asked,
            f"{name}-seed{seed}",
            [
                record.checked_mixture(
                    dict(zip(domains, map(float, mixture), strict=True)), domains
                )
                for mixture in found.ways[name].schedule
            ],
            seed,
        )
        for seed in asked.seeds
        for name in (JOINT, CONSTANT)
    }
    run_ids = train_missing(plan, corpus, list(planned.values()), machines, record.SCHEDULE)
    rows = []
    for (name, seed), run in planned.items():
        losses = last_losses(run_ids[run.name])
        objective = sum(w * losses[d] for d, w in plan.weights().items())
        rows.append(
            {
                "way": name,
                "seed": seed,
                "run_id": run_ids[run.name],
                "objective": objective,
                **record.with_prefix(record.VAL_LOSS, losses),
            }
        )
    table = pd.DataFrame(rows)
    by_way = {name: group["objective"].to_numpy() for name, group in table.groupby("way")}
    gains = by_way[CONSTANT] - by_way[JOINT]
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    width = student.ppf((1 + PROBABILITY) / 2, len(gains) - 1) * error
    return Proof(table, float(gains.mean()), float(width))


def for_target(plan: Study, predictor: SchedulePredictor, schedule: Array) -> list[Phase]:
    """The schedule at the length of the study's target, its phases in whole steps."""
    starts = np.concatenate([[0.0], predictor.tokens[:-1]]) / predictor.tokens[-1]
    per_step = plan.training.tokens_per_step
    return [
        Phase(
            from_tokens=round(start * plan.target.steps) * per_step,
            mixture=dict(zip(predictor.domains, map(float, mixture), strict=True)),
        )
        for start, mixture in zip(starts, schedule, strict=True)
    ]


def log_plan(plan: Study, fitted: ScheduleFit, found: Plan) -> None:
    """Log the law and the schedule to the active run."""
    active = mlflow.active_run()
    assert active is not None
    predictor, best = found.predictor, found.best
    domains = predictor.domains
    steps = [0, *(predictor.tokens[:-1] / plan.training.tokens_per_step).astype(int).tolist()]
    mixtures = [dict(zip(domains, map(float, row), strict=True)) for row in best.schedule]
    pairs = list(zip(steps, mixtures, strict=True))
    constant = dict(zip(domains, map(float, found.ways[CONSTANT].schedule[0]), strict=True))
    tracking.log_params(
        active.info.run_id,
        {
            **record.phases(pairs, plan.training.tokens_per_step),
            **record.with_prefix(record.MIXTURE, constant),
            "law/power": fitted.law.power,
            "law/ridge": fitted.ridge,
        },
    )
    low, high = found.range()
    mlflow.log_metrics(
        {
            "gain": found.gain(),
            "gain_low": low,
            "gain_high": high,
            "gain_on_other_draws": float(found.chosen.mean()),
            **{
                f"predicted/{name.replace(' ', '_')}": float(way.objectives[-1])
                for name, way in found.ways.items()
            },
            **{f"cv/rmse/{row.phase}": row.rmse for row in fitted.scores.itertuples()},
        }
    )
    mlflow.log_table(fitted.candidates, "candidates.json")
    mlflow.log_table(fitted.scores, "scores.json")
    mlflow.log_table(fitted.held_out, "held_out_predictions.json")
    mlflow.log_dict(
        [phase.model_dump() for phase in for_target(plan, predictor, best.schedule)],
        schedules.ARTIFACT,
    )
    _log_figures(
        {"schedule": plots.schedules(found), "gain": plots.gains(found), "kept": plots.kept(found)}
    )


def log_proof(found: Plan, proof: Proof) -> None:
    """Log measured beside predicted to the active run."""
    mlflow.log_metrics(
        {
            "measured_gain": proof.gain,
            "measured_gain_low": proof.gain - proof.half_width,
            "measured_gain_high": proof.gain + proof.half_width,
        }
    )
    mlflow.log_table(proof.table, "measured.json")
    predicted = {}
    for name in (CONSTANT, JOINT):
        answer = found.predictor.ask(found.ways[name].schedule)
        ends = (answer["objective"], answer["objective_low"], answer["objective_high"])
        predicted[name] = ends
    _log_figures({"measured_beside_predicted": plots.proof(proof.measured(), predicted)})


def _log_figures(figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        mlflow.log_figure(figure, f"figures/{name}.png")
        plt.close(figure)


def main(study: str, model: str, workers: str, ranks: str) -> None:
    plan = studies.load(study)
    asked = plan.phases
    if asked is None:
        raise InputError(
            f"study {plan.name!r} has no section `phases`, which says how a schedule is planned; "
            "`-P study=quickstart` has one"
        )
    machines = entry.machines(workers, ranks)
    corpus = prepare(plan)
    fitted = fit(plan, corpus, asked, machines)
    n_params = plan.size(asked.size).n_params
    registered = register(fitted, model or f"{plan.model}-schedule", n_params)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    predictor = search.load(registered.uri)
    known = {"default": np.array([*plan.default(corpus).values()])}
    wanted = plan.search
    found = search.plan(predictor, plan.feasible(), known, wanted.trials, wanted.seed)
    log_plan(plan, fitted, found)
    lines = [_scores(fitted), "", *report(found)]
    print("\n".join(lines), flush=True)
    proof = prove(plan, corpus, asked, found, machines)
    log_proof(found, proof)
    text = "\n".join([*lines, proof.verdict])
    mlflow.set_tag("mlflow.note.content", f"```\n{text}\n```"[: record.TAG_LIMIT])
    active = mlflow.active_run()
    assert active is not None
    print(proof.verdict)
    print(
        f"train the target on it:  -e train -P schedule=runs:/{active.info.run_id} "
        f"-P size={plan.target.size} -P steps={plan.target.steps}"
    )


def _scores(fitted: ScheduleFit) -> str:
    chain = fitted.scores.iloc[-1]
    each = ", ".join(
        f"phase {row.phase} {row.rmse:.4f} (predicting the mean: {row.mean_rmse:.4f})"
        for row in fitted.scores.iloc[:-1].itertuples()
    )
    return f"error on left-out mixtures, nats/token: {each}; of whole schedules {chain.rmse:.4f}"


if __name__ == "__main__":
    entry.main(
        record.SCHEDULE,
        main,
        entry.arguments(__doc__, study="quickstart", model="", workers="auto", ranks="1"),
    )

"""`schedule`: plan a mixture that changes while a model trains, and prove it by training."""

import mlflow
import numpy as np
from scipy.stats import t as student

from fitting import registry
from fitting.artifact import laws
from fitting.data.phase_observations import PhaseRuns
from fitting.estimators import schedule
from fitting.estimators.schedule import ScheduleFit
from optimization.schedule import plan as search
from optimization.schedule import plots
from optimization.schedule.plan import CONSTANT, Plan, SchedulePredictor
from optimization.schedule.report import report
from pipelines import entry
from pipelines.command import advice, preflight
from pipelines.prepare import prepare
from pipelines.proof import schedule_proof
from pipelines.runs import phase_runs
from pipelines.runs.proxy_runs import refuse_design
from pipelines.study import load as studies
from pipelines.study import schedule_section
from pipelines.study.sections import Phases
from pipelines.study.study import SCHEDULED, Study
from training.data.corpus import Corpus
from training.engine import kernels
from training.record import keys, layout
from training.record.errors import InputError
from training.record.mlflow_runs import log_params
from training.run import Phase
from training.workers.devices import Machines

Array = np.ndarray
PROBABILITY = 0.9


def fit(plan: Study, corpus: Corpus, asked: Phases, machines: Machines) -> ScheduleFit:
    """Train the proxies of every phase and fit the law to them."""
    table = phase_runs.train(plan, corpus, asked, machines)
    mlflow.log_text(table.to_csv(index=False), "phases.csv")
    tokens = np.cumsum(asked.steps) * plan.training.tokens_per_step
    weights = np.array([*plan.weights().values()])
    return schedule.fit(PhaseRuns.from_table(table, tokens.astype(float)), weights)


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
    log_params(
        active.info.run_id,
        {
            **keys.phases(pairs, plan.training.tokens_per_step),
            **keys.with_prefix(keys.MIXTURE, constant),
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
        schedule_section.ARTIFACT,
    )
    for name, figure in (
        ("schedule", plots.schedules(found)),
        ("gain", plots.gains(found)),
        ("kept", plots.kept(found)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")


def main(study: str, model: str, workers: str, ranks: str) -> None:
    plan = studies.load(study)
    asked = plan.phases
    if asked is None:
        raise InputError(
            f"study {plan.name!r} has no section `phases`, which says how a schedule is planned; "
            "`-P study=quickstart` has one"
        )
    machines = entry.machines(workers, ranks)
    name = model or plan.model + SCHEDULED
    registry.refuse_bad_name(name, "model")
    preflight.training(plan, machines, [asked.size])
    phase_runs.refuse_listed(plan)
    refuse_design(plan, asked.mixtures)
    kernels.build_for(machines)
    corpus = prepare(plan)
    fitted = fit(plan, corpus, asked, machines)
    n_params = plan.size(asked.size).n_params
    registered = register(fitted, name, n_params)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    predictor = search.load(registered.uri)
    known = {"default": np.array([*plan.default(corpus).values()])}
    wanted = plan.search
    found = search.plan(predictor, plan.feasible(), known, wanted.trials, wanted.seed)
    log_plan(plan, fitted, found)
    lines = [_scores(fitted), "", *report(found)]
    print("\n".join(lines), flush=True)
    proof = schedule_proof.prove(plan, corpus, asked, found, machines)
    schedule_proof.log(found, proof)
    measured = schedule_proof.report(found, proof)
    mlflow.set_tag(keys.NOTE, layout.description([*lines, *measured]))
    mlflow.log_text("\n".join([*lines, *measured]), layout.REPORT)
    active = mlflow.active_run()
    assert active is not None
    print("\n".join(measured))
    print(
        "train the target on it:  "
        + advice.command(
            "train",
            active.info.experiment_id,
            study=study,
            schedule=f"runs:/{active.info.run_id}",
            size=plan.target.size,
            steps=str(plan.target.steps),
        )
    )


def _scores(fitted: ScheduleFit) -> str:
    chain = fitted.scores.iloc[-1]
    each = ", ".join(
        f"phase {row.phase} {row.rmse:.4f} (predicting the mean: {row.mean_rmse:.4f})"
        for row in fitted.scores.iloc[:-1].itertuples()
    )
    return f"error on held-out mixtures, nats/token: {each}; of whole schedules {chain.rmse:.4f}"


if __name__ == "__main__":
    entry.main(
        keys.SCHEDULE,
        main,
        entry.arguments(__doc__, study="quickstart", model="", workers="auto", ranks="1"),
    )

"""`schedule`: find the best schedule of mixtures, and test it by training."""

from dataclasses import dataclass

import mlflow
import numpy as np

from fitting import model_names, registry
from fitting.artifact import laws
from fitting.artifact.spec import ScheduleSpec
from fitting.data.phase_observations import PhaseRuns
from fitting.selection import schedule
from fitting.selection.schedule import ScheduleFit
from optimization.schedule import plots
from optimization.schedule.plan import CONSTANT, ScheduleAnswer, solve
from optimization.schedule.predictor import SchedulePredictor, load
from optimization.schedule.report import report
from pipelines import entry
from pipelines.command import advice, table
from pipelines.prepare import prepare
from pipelines.proof import schedule_proof
from pipelines.runs import phase_runs, preflight
from pipelines.runs.phase_runs import PhaseProxies
from pipelines.runs.proxy_runs import refuse_design
from pipelines.study import load as studies
from pipelines.study import schedule_section
from pipelines.study.study import SCHEDULED, Study
from training.engine import kernels
from training.engine.devices import Machines
from training.record import keys, layout, markdown
from training.record.errors import InputError
from training.record.intervals import t_quantile
from training.record.mlflow_runs import log_params
from training.run import Phase

Array = np.ndarray


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    model: str = table.parameter(
        f"The name to register the predictor under; by default the study's with {SCHEDULED}."
    )
    workers: str = table.workers()
    ranks: int = table.ranks()


def fit(proxies: PhaseProxies, machines: Machines, active: mlflow.ActiveRun) -> ScheduleFit:
    """Train the proxies of every phase and fit the law to them."""
    runs = proxies.train(machines, active)
    mlflow.log_text(runs.to_csv(index=False), "phases.csv")
    study = proxies.prepared.study
    tokens = np.cumsum(proxies.section.steps) * study.training.tokens_per_step
    phase_runs, weights = PhaseRuns.from_table(runs, tokens.astype(float)), study.weights()
    return schedule.fit(phase_runs, np.array([weights[d] for d in phase_runs.val_domains]))


def register(fitted: ScheduleFit, name: str, n_params: int, unit: str) -> registry.Registered:
    """Register the predictor; its error is that of whole schedules with held-out mixtures."""
    runs = fitted.runs
    spec = ScheduleSpec(
        domains=tuple(runs.domains),
        val_domains=tuple(runs.val_domains),
        weights=tuple(fitted.weights.tolist()),
        n_params=n_params,
        law=laws.to_json(fitted.law),
        replicates=tuple(map(laws.to_json, fitted.replicates)),
        residual=fitted.residual,
        quantile=t_quantile(len(runs.mixtures) - 1),
        mixtures=tuple(map(tuple, runs.mixtures.tolist())),
        unit=unit,
    )
    fit_run = markdown.run_link(mlflow.active_run().info.run_id)
    about = (
        "Predicts the losses after each phase of a schedule of mixtures, for "
        f"{layout.short_count(n_params)} parameters. Fitted by {fit_run}."
    )
    return registry.register_schedule(name, spec, fitted.residual, lambda _: (about,))


def for_target(study: Study, predictor: SchedulePredictor, schedule: Array) -> list[Phase]:
    """The schedule scaled to the length of the study's target, its phases in whole steps."""
    starts = np.concatenate([[0.0], predictor.tokens[:-1]]) / predictor.tokens[-1]
    per_step = study.training.tokens_per_step
    return [
        Phase(
            from_tokens=round(start * study.target.steps) * per_step,
            mixture=dict(zip(predictor.domains, map(float, mixture), strict=True)),
        )
        for start, mixture in zip(starts, schedule, strict=True)
    ]


def log_schedule(
    study: Study, fitted: ScheduleFit, answer: ScheduleAnswer, active: mlflow.ActiveRun
) -> None:
    """Log the law and the schedule to the active run."""
    predictor, best = answer.predictor, answer.best
    domains = predictor.domains
    steps = [0, *(predictor.tokens[:-1] / study.training.tokens_per_step).astype(int).tolist()]
    mixtures = [dict(zip(domains, map(float, row), strict=True)) for row in best.schedule]
    pairs = list(zip(steps, mixtures, strict=True))
    constant = dict(zip(domains, map(float, answer.strategies[CONSTANT].schedule[0]), strict=True))
    log_params(
        active.info.run_id,
        {
            **keys.phases(pairs, study.training.tokens_per_step),
            **keys.with_prefix(keys.MIXTURE, constant),
            "law/power": fitted.law.power,
            "law/ridge": fitted.ridge,
        },
    )
    low, high = answer.range()
    mlflow.log_metrics(
        {
            "gain": answer.gain(),
            "gain_low": low,
            "gain_high": high,
            "gain_on_other_draws": float(answer.resampled_gains.mean()),
            **{
                f"predicted/{name.replace(' ', '_')}": float(strategy.objectives[-1])
                for name, strategy in answer.strategies.items()
            },
            **{f"cv/rmse/{row.phase}": row.rmse for row in fitted.scores.itertuples()},
        }
    )
    mlflow.log_table(fitted.candidates, "candidates.json")
    mlflow.log_table(fitted.scores, "scores.json")
    mlflow.log_table(fitted.held_out, "held_out_predictions.json")
    mlflow.log_dict(
        [phase.model_dump() for phase in for_target(study, predictor, best.schedule)],
        schedule_section.ARTIFACT,
    )
    for name, figure in (
        ("schedule", plots.schedules(answer)),
        ("gain", plots.gains(answer)),
        ("retention", plots.retention(answer)),
    ):
        mlflow.log_figure(figure, f"figures/{name}.png")


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    section = study.phases
    if section is None:
        raise InputError(
            f"study {study.name!r} has no section `phases`, which says how a schedule is planned; "
            "`-P study=quickstart` has one"
        )
    machines = entry.machines(parameters.workers, parameters.ranks)
    name = parameters.model or study.model + SCHEDULED
    model_names.refuse_bad_name(name, "model")
    preflight.training(study, machines, [section.size])
    phase_runs.refuse_listed(study)
    refuse_design(study, section.mixtures)
    kernels.build_for(machines)
    prepared = prepare(study)
    proxies = PhaseProxies(prepared, section)
    fitted = fit(proxies, machines, active)
    registered = register(fitted, name, study.size(section.size).n_params, study.unit)
    mlflow.set_tags({"model_uri": registered.uri, "alias": registered.alias})
    predictor = load(registered.uri)
    known = {"default": np.array([*prepared.default.values()])}
    answer = solve(predictor, study.feasible(), known, study.search.trials, study.search.seed)
    log_schedule(study, fitted, answer, active)
    lines = [_scores(fitted, study.unit), "", *report(answer)]
    print("\n".join(lines), flush=True)
    proof = schedule_proof.prove(proxies, answer, machines, active)
    schedule_proof.log(answer, proof)
    measured = schedule_proof.report(answer, proof)
    mlflow.set_tag(keys.NOTE, layout.description([*lines, *measured]))
    mlflow.log_text("\n".join([*lines, *measured]), layout.REPORT)
    print("\n".join(measured))
    print(
        "train the target on it:  "
        + advice.command(
            "train",
            active.info.experiment_id,
            study=parameters.study,
            schedule=f"runs:/{active.info.run_id}",
            size=study.target.size,
            steps=str(study.target.steps),
        )
    )


def _scores(fitted: ScheduleFit, unit: str) -> str:
    chain = fitted.scores.iloc[-1]
    each = ", ".join(
        f"phase {row.phase} {row.rmse:.4f} (predicting the mean: {row.mean_rmse:.4f})"
        for row in fitted.scores.iloc[:-1].itertuples()
    )
    error = f"error on held-out mixtures, {keys.unit_text(unit)}"
    return f"{error}: {each}; of whole schedules {chain.rmse:.4f}"

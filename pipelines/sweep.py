"""`sweep`: design the mixtures and train every proxy run that is not finished."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlflow

from fitting.data import origin
from pipelines import entry
from pipelines.command import advice, experiment_page, saved_view, table
from pipelines.prepare import prepare
from pipelines.runs import budget, dry_run, earlier_sweeps, preflight, proxy_runs, sweep_status
from pipelines.runs.fitted_runs import purpose_of
from pipelines.runs.proxy_runs import planned_runs, refuse_design, train_missing
from pipelines.study import load as studies
from pipelines.study.prepared import Prepared
from training.engine import kernels
from training.engine.devices import Machines
from training.record import attempts, keys, layout, markdown
from training.record.errors import InputError
from training.record.mlflow_runs import log_params
from training.run import Run, fingerprint
from training.workers import slurm


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    workers: str = table.workers()
    ranks: int = table.ranks()
    launcher: str = table.launcher()
    sbatch: str = table.sbatch()
    plan: bool = table.dry_run()
    throughput: float | None = table.throughput()


def sweep(
    prepared: Prepared,
    machines: Machines,
    active: mlflow.ActiveRun,
    array: slurm.Array | None = None,
) -> None:
    """Train the study's proxies below the active run, here or by the tasks of a Slurm array."""
    study = prepared.study
    earlier_sweeps.refuse_incomparable(study, prepared, active.info.experiment_id)
    mlflow.set_tag(keys.STUDY, prepared.tag)
    purpose = purpose_of(study, prepared)
    log_params(active.info.run_id, purpose.params())
    mlflow.set_tag(keys.BUNDLES, json.dumps(purpose.bundles))
    mlflow.log_dict(study.model_dump(mode="json"), "study.json")
    kept = earlier_sweeps.design(prepared, active.info.experiment_id)
    earlier_sweeps.log_design(prepared, proxy_runs.mixtures(prepared, kept))
    runs = planned_runs(prepared, active)
    _adopt(prepared, runs, active)
    _describe(prepared, runs, active)
    with sweep_status.logged(prepared, active):
        train_missing(prepared, runs, machines, keys.SWEEP, active, array)


def _describe(prepared: Prepared, runs: Sequence[Run], active: mlflow.ActiveRun) -> None:
    """Describe the sweep and its experiment, where a view of the proxies is saved."""
    study, tag, place = prepared.study, prepared.tag, active.info.experiment_id
    n_params, tokens = study.size(study.target.size).n_params, study.target_tokens()
    question = (
        f"Which mixture of {markdown.escaped(layout.some(list(study.domains)))} gives a model of "
        f"{layout.short_count(n_params)} parameters the lowest loss after "
        f"{layout.short_count(tokens)} tokens?"
    )
    sizes = dict.fromkeys(f"{layout.short_count(run.size.n_params)}" for run in runs)
    weights = (f"{name} {w:.2g}" for name, w in study.weights().items() if w)
    views = saved_view.links(place, tag)
    facts = {
        "Proxies": f"{len(runs)} in {len(sizes)} sizes ({', '.join(sizes)} parameters): {views}",
        "Loss": f"{keys.unit_text(study.unit)}, weighted: {markdown.escaped(', '.join(weights))}",
        "Compared with": markdown.escaped(
            ", ".join(f"{name} {share:.3f}" for name, share in prepared.default.items())
        ),
    }
    mlflow.set_tag(keys.NOTE, markdown.fitting_parts([f"**{question}**", markdown.facts(facts)]))
    saved_view.save(place, study.name, tag, list(study.domains), study.evaluated)
    question = f"**{question}** (study {markdown.escaped(study.name)})"
    experiment_page.describe(place, question, views)


def _adopt(prepared: Prepared, runs: Sequence[Run], active: mlflow.ActiveRun) -> None:
    """Mark planned runs that were trained outside a sweep, so that they are fitted.

    Raises InputError if another study has trained some of them.
    """
    finished = attempts.finished_runs(active.info.experiment_id, keys.PROXY)
    planned = [fingerprint(run) for run in runs]
    trained = [finished[key] for key in planned if key in finished]
    others = {run.data.tags.get(keys.STUDY) for run in trained} - {prepared.tag}
    if others:
        raise InputError(
            f"name: {min(map(str, others))!r}, another study or another version of this one, has "
            f"trained runs of {prepared.tag!r} in this experiment, and a fit would not find them; "
            "take that name, or another experiment (--experiment-name)"
        )
    for run_id, where in origin.origins(trained).items():
        if where == origin.UNPLANNED:
            mlflow.MlflowClient().set_tag(run_id, keys.PLANNED_BY, active.info.run_id)


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    study = studies.load(parameters.study)
    workers, ranks = parameters.workers, parameters.ranks
    array = entry.array(parameters.launcher, parameters.sbatch, workers, ranks)
    machines = Machines(array.tasks, ranks) if array else entry.machines(workers, ranks)
    if dry_run.requested(parameters.plan, parameters.throughput):
        basis = budget.basis(study)
        kept = earlier_sweeps.design(basis.prepared, active.info.experiment_id)
        runs = proxy_runs.proxy_runs(basis.prepared, kept)
        dry_run.show(basis, runs, machines.workers, parameters.throughput, active, targets=True)
        return
    preflight.training(study, machines, study.sweep.sizes, here=array is None)
    refuse_design(study)
    earlier_sweeps.refuse_incomparable(study, Prepared.find(study), active.info.experiment_id)
    if array is None:
        kernels.build_for(machines)
    else:
        slurm.refuse_unusable(array, [study.ledger_url(), mlflow.get_tracking_uri()])
    prepared = prepare(study)
    sweep(prepared, machines, active, array)
    print("\n".join(_end(prepared, parameters.study, active)))


def _end(prepared: Prepared, study: str, active: mlflow.ActiveRun) -> Iterator[str]:
    """What was done and what to do next; `study` is the user's name for it."""
    experiment, tag = active.info.experiment_id, prepared.tag
    metrics = mlflow.get_run(active.info.run_id).data.metrics
    runs, trained = int(metrics["runs_planned"]), int(metrics["runs_trained"])
    diverged = [
        str(run.info.run_name)
        for run in attempts.finished_runs(experiment, keys.PROXY).values()
        if keys.DIVERGED in run.data.tags and run.data.tags.get(keys.STUDY) == tag
    ]
    yield (
        f"sweep: all {runs} runs are done, {trained} of them since this command started; "
        f"tags.{keys.STUDY} = '{tag}'"
    )
    if diverged:
        yield f"  {len(diverged)} of them diverged; fits leave them out: {layout.some(diverged)}"
    yield f"fit them next:  {advice.command(keys.FIT, experiment, study=study)}"
    yield f"look at them:   {advice.look_at(active)}"

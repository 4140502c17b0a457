"""`sweep`: design the mixtures and train every proxy run that is not finished yet."""

import json
from collections.abc import Iterator, Sequence

import mlflow

from fitting.data import origin
from pipelines import entry
from pipelines.command import advice, preflight
from pipelines.prepare import prepare
from pipelines.runs import budget
from pipelines.runs import dry_run as plans
from pipelines.runs.proxy_runs import planned_runs, proxy_runs, refuse_design, train_missing
from pipelines.study import load as studies
from pipelines.study.study import Study
from training import run_log
from training.data.corpus import Corpus
from training.engine import kernels
from training.record import keys, layout
from training.record.mlflow_runs import log_params
from training.run import Run, fingerprint
from training.workers.devices import Machines


def _adopt(runs: Sequence[Run], experiment: str) -> None:
    """Mark planned runs that were trained outside of a sweep, so that fits take them."""
    active = mlflow.active_run()
    assert active is not None
    trained = run_log.settled_runs(experiment, keys.PROXY)
    planned = [fingerprint(run) for run in runs]
    there = [trained[key] for key in planned if key in trained]
    for run_id, where in origin.origins(there).items():
        if where == origin.UNPLANNED:
            mlflow.MlflowClient().set_tag(run_id, keys.PLANNED, active.info.run_id)


def sweep(plan: Study, corpus: Corpus, machines: Machines) -> None:
    """Train the study's proxies below the active run."""
    active = mlflow.active_run()
    assert active is not None
    mlflow.set_tag(keys.STUDY, plan.tag(corpus))
    lower, upper = plan.limits()
    log_params(
        active.info.run_id,
        {
            keys.TARGET_N_PARAMS: plan.size(plan.target.size).n_params,
            keys.TARGET_TOKENS: plan.target_tokens(),
            **keys.with_prefix(keys.WEIGHT, plan.weights()),
            **keys.with_prefix(keys.DEFAULT_MIXTURE, plan.default(corpus)),
            **keys.with_prefix(keys.LOWEST, dict(zip(plan.domains, lower, strict=True))),
            **keys.with_prefix(keys.HIGHEST, dict(zip(plan.domains, upper, strict=True))),
        },
    )
    mlflow.set_tag(keys.BUNDLES, json.dumps(plan.bundles))
    mlflow.log_dict(plan.model_dump(mode="json"), "study.json")
    runs = planned_runs(plan, corpus)
    _adopt(runs, active.info.experiment_id)
    train_missing(plan, corpus, runs, machines, keys.SWEEP)


def main(study: str, workers: str, ranks: str, plan: str, throughput: str) -> None:
    chosen = studies.load(study)
    processes = entry.machines(workers, ranks)
    if plans.wanted(plan, throughput):
        known = budget.basis(chosen)
        runs = proxy_runs(chosen, known.corpus)
        plans.show(chosen, known, runs, processes.workers, throughput, targets=True)
    else:
        preflight.training(chosen, processes, chosen.sweep.sizes)
        refuse_design(chosen)
        kernels.build_for(processes)
        corpus = prepare(chosen)
        sweep(chosen, corpus, processes)
        print("\n".join(_end(chosen, corpus, study)))


def _end(plan: Study, corpus: Corpus, study: str) -> Iterator[str]:
    """What was done and what to do next; `study` as the user named it."""
    active = mlflow.active_run()
    assert active is not None
    experiment = active.info.experiment_id
    metrics = mlflow.get_run(active.info.run_id).data.metrics
    runs, trained = int(metrics["runs_planned"]), int(metrics["runs_trained"])
    diverged = [
        r
        for r in run_log.settled_runs(experiment, keys.PROXY).values()
        if keys.DIVERGED in r.data.tags and r.data.tags.get(keys.STUDY) == plan.tag(corpus)
    ]
    yield (
        f"sweep: all {runs} runs are done, {trained} of them trained now; tags.{keys.STUDY} = "
        f"'{plan.tag(corpus)}'"
    )
    if diverged:
        names = [str(run.info.run_name) for run in diverged]
        yield f"  {len(diverged)} of them diverged; fits leave them out: {layout.some(names)}"
    yield f"fit them next:  {advice.command(keys.FIT, experiment, study=study)}"
    yield f"look at them:   {advice.look_at(active)}"


if __name__ == "__main__":
    entry.main(
        keys.SWEEP,
        main,
        entry.arguments(
            __doc__, study="quickstart", workers="auto", ranks="1", plan="false", throughput=""
        ),
    )

"""`train`: train one model on one mixture."""

import json
from dataclasses import dataclass

import mlflow

from pipelines import entry
from pipelines.command import table, texts
from pipelines.prepare import prepare
from pipelines.runs import budget, dry_run, preflight
from pipelines.study import load as studies
from pipelines.study import schedule_section
from pipelines.study.study import Study
from training import run_log
from training.data.corpus import Corpus
from training.engine import kernels
from training.engine.devices import Machines
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags
from training.run import Phase, Run
from training.workers import pool
from training.workers.messages import SingleRun


@dataclass(frozen=True)
class Parameters:
    study: str = table.study()
    mixture: str = table.parameter(
        "`web=0.5,code=0.5`, a JSON object or file, or `runs:/<id>` of a run with a mixture; by "
        "default the study's."
    )
    schedule: str = table.parameter(
        "A mixture that changes: a JSON list or file of from_tokens and mixture, or `runs:/<id>` "
        "of a run of `schedule`."
    )
    size: str = table.parameter("A size of the study or of the ladder.", default=None)
    steps: int | None = table.parameter(
        "Optimizer steps; by default those of `training`.", table.at_least(1)
    )
    seed: int = table.parameter(
        "Seed of the weights and of the order of the text.", table.at_least(0), default="0"
    )
    save_model: bool = table.parameter(
        "`true`: log the model as artifact `model`.", texts.boolean, default="false"
    )
    ranks: int = table.ranks()
    hostfile: str = table.hostfile()
    plan: bool = table.dry_run()
    throughput: float | None = table.throughput()


def train(run: Run, corpus: Corpus, machines: Machines, active: mlflow.ActiveRun) -> History:
    """Train a model into the active MLflow run, from its checkpoint if there is one."""
    run_id = active.info.run_id
    run_log.log_datasets(run_id, corpus)
    pool.train([run], corpus, SingleRun(run, run_id, active.info.experiment_id), machines)
    history = history_from_tags(mlflow.get_run(run_id).data.tags)
    if history is None:
        raise InputError("the training processes died; run the command again to resume")
    return history


def requested_phases(study: Study, mixture: str, schedule: str) -> list[Phase]:
    """The phases of the parameters, or else of the study; empty: the default mixture."""
    domains, per_step = list(study.domains), study.training.tokens_per_step
    if mixture:
        return [Phase(mixture=texts.mixture(mixture, domains))]
    if schedule:
        return schedule_section.read(schedule, domains, per_step)
    return schedule_section.checked(study.schedule, domains, per_step, "schedule")


def main(parameters: Parameters, active: mlflow.ActiveRun) -> None:
    size = parameters.size
    study = studies.with_sizes(studies.load(parameters.study), [size])
    study.size(size)
    machines = entry.machines("1", parameters.ranks, parameters.hostfile)
    if parameters.mixture and parameters.schedule:
        raise InputError("schedule: give a mixture or a schedule, not both")
    phases = requested_phases(study, parameters.mixture, parameters.schedule)
    steps = parameters.steps or study.training.steps
    study.refuse_length(steps, phases[1:])
    if dry_run.requested(parameters.plan, parameters.throughput):
        basis = budget.basis(study)
        prepared = basis.prepared
    else:
        basis = None
        preflight.training(study, machines, [size], queued=False)
        kernels.build_for(machines)
        prepared = prepare(study)
    first, *later = phases or [Phase(mixture=prepared.default)]
    run = prepared.run(
        f"train-{size}",
        first.mixture,
        size=size,
        seed=parameters.seed,
        stage=keys.SCHEDULED if later else keys.PROXY,
        steps=steps,
        later=later,
    )
    save = parameters.save_model or study.engine.save_models
    engine = run.engine.model_copy(update={"save_models": save})
    run = run.model_copy(update={"engine": engine})
    if basis:
        mlflow.set_tag(keys.STAGE, dry_run.STAGE)  # otherwise it would count as a proxy
        dry_run.show(basis, [run], machines.workers, parameters.throughput, active, targets=False)
        return
    prepared.check_repetition([run])
    for phase in (first, *later):
        if broken := study.broken_rule(phase.mixture):
            print(f"the mixture breaks a rule of the study ({broken}): fits leave this run out")
            break
    history = train(run, prepared.corpus, machines, active)
    print(json.dumps(dict(zip(history.domains, history.losses[-1], strict=True)), indent=1))

"""`train`: train one model on one mixture."""

import json

import mlflow

from pipelines import entry
from pipelines.command import parameters, preflight
from pipelines.prepare import prepare
from pipelines.runs import budget
from pipelines.runs import dry_run as plans
from pipelines.study import load as studies
from pipelines.study import schedule_section
from pipelines.study.study import Study
from training import run_log
from training.data.corpus import Corpus
from training.engine import kernels
from training.record import keys
from training.record.errors import InputError
from training.record.history import History, history_from_tags
from training.run import Phase, Run
from training.workers import pool
from training.workers.devices import Machines
from training.workers.messages import Alone


def train(run: Run, corpus: Corpus, machines: Machines) -> History:
    """Train a model into the active MLflow run, from its checkpoint where there is one."""
    active = mlflow.active_run()
    assert active is not None
    run_id = active.info.run_id
    run_log.log_datasets(run_id, corpus)
    pool.train([run], corpus, Alone(run, run_id), machines)
    history = history_from_tags(mlflow.get_run(run_id).data.tags)
    if history is None:
        raise InputError("the processes that trained it died; start it again to go on")
    return history


def given_phases(chosen: Study, mixture: str, schedule: str) -> list[Phase]:
    """The phases that the parameters, or else the study, give; none: the default mixture."""
    domains, per_step = list(chosen.domains), chosen.training.tokens_per_step
    if mixture:
        return [Phase(mixture=parameters.mixture(mixture, domains))]
    if schedule:
        return schedule_section.read(schedule, domains, per_step)
    return schedule_section.checked(chosen.schedule, domains, per_step, "schedule")


def main(
    study: str,
    mixture: str,
    schedule: str,
    size: str,
    steps: str,
    seed: str,
    save_model: str,
    ranks: str,
    hostfile: str,
    plan: str,
    throughput: str,
) -> None:
    chosen = studies.load(study)
    chosen.size(size)
    machines = entry.machines("1", ranks, hostfile)
    if mixture and schedule:
        raise InputError("schedule: give a mixture or a schedule, not both")
    given = given_phases(chosen, mixture, schedule)
    count = parameters.integer("steps", steps, least=1) if steps else chosen.training.steps
    chosen_seed = parameters.integer("seed", seed)
    save = parameters.boolean("save_model", save_model) or chosen.engine.save_models
    chosen.refuse_length(count, given[1:])
    if not plans.wanted(plan, throughput):
        preflight.training(chosen, machines, [size], queued=False)
        kernels.build_for(machines)
    known = budget.basis(chosen) if plans.wanted(plan, throughput) else None
    corpus = known.corpus if known else prepare(chosen)
    first, *later = given or [Phase(mixture=chosen.default(corpus))]
    run = chosen.run(
        corpus,
        f"train-{size}",
        first.mixture,
        size=size,
        seed=chosen_seed,
        stage=keys.SCHEDULED if later else keys.PROXY,
        steps=count,
        later=later,
    )
    engine = run.engine.model_copy(update={"save_models": save})
    run = run.model_copy(update={"engine": engine})
    if known:
        mlflow.set_tag(keys.STAGE, plans.STAGE)  # no proxy for fits to leave out
        plans.show(chosen, known, [run], machines.workers, throughput, targets=False)
        return
    chosen.check_repetition([run], corpus)
    for phase in (first, *later):
        if broken := chosen.broken_rule(phase.mixture):
            print(f"the mixture breaks a rule of the study ({broken}): fits leave this run out")
            break
    history = train(run, corpus, machines)
    print(json.dumps(dict(zip(history.domains, history.losses[-1], strict=True)), indent=1))


if __name__ == "__main__":
    entry.main(
        keys.PROXY,
        main,
        entry.arguments(
            __doc__,
            study="quickstart",
            mixture="",
            schedule="",
            size="",
            steps="",
            seed="0",
            save_model="false",
            ranks="1",
            hostfile="",
            plan="false",
            throughput="",
        ),
    )

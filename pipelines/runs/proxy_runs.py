"""The proxies of a study: their mixtures, and the training of those that are missing."""

from collections.abc import Iterator, Mapping

import mlflow
import numpy as np

from optimization.design import space_filling
from optimization.search import projection
from pipelines.study.study import DECIMALS, Study
from training import run_log
from training.data.corpus import Corpus
from training.record import keys, layout
from training.record.errors import InputError
from training.run import Run, fingerprint
from training.workers import pool
from training.workers.devices import Machines
from training.workers.ledger import Ledger
from training.workers.messages import Queue


def proxy_runs(plan: Study, corpus: Corpus) -> list[Run]:
    """The planned proxies, the largest first: every mixture at every size."""
    if isinstance(plan.sweep.mixtures, int):
        named = designed(plan, plan.sweep.mixtures, plan.default(corpus))
    else:
        named = {f"mix{i:02d}": mixture for i, mixture in enumerate(plan.listed_mixtures())}
    return [
        plan.run(corpus, f"{label}-{size}", mixture, size=size, seed=plan.sweep.seed)
        for size in sorted(plan.sweep.sizes, key=lambda s: -plan.size(s).n_params)
        for label, mixture in named.items()
    ]


def refuse_design(plan: Study, count: int | None = None) -> None:
    """Raise InputError where the study's design has not so many mixtures, by default its sweep's.

    To be called before the text is prepared, from which a proportional default mixture follows.
    """
    if count is None and plan.listed_mixtures():
        return
    wanted = plan.sweep.mixtures if count is None else count
    assert isinstance(wanted, int)
    default = plan.given_default()
    if default is not None or plan.sweep.design != space_filling.DIRICHLET:  # which draws around it
        designed(plan, wanted, default or dict.fromkeys(plan.domains, 1 / len(plan.domains)))


def designed(plan: Study, count: int, default: dict[str, float]) -> dict[str, dict[str, float]]:
    """Label → mixture: the default one, the uniform one and those that cover what they leave.

    Where bounds forbid the uniform mixture, the nearest allowed one takes its place. Of these two
    a study with bundles has those that keep them.
    """
    names, allowed = list(plan.domains), plan.feasible()
    even = np.full(len(names), 1 / len(names))
    given = {"default": np.array([*default.values()]), projection.UNIFORM: even}
    label, near = projection.uniform(allowed)
    if plan.bundles:
        given = {name: m for name, m in given.items() if allowed.inside(m[None])[0]}
    elif label != projection.UNIFORM and np.allclose(near, given["default"], atol=10**-DECIMALS):
        del given[projection.UNIFORM]  # what would take its place is there
    mixtures = space_filling.designed(
        plan.sweep.design,
        count,
        given=np.array([*given.values()]).reshape(-1, len(names)),
        allowed=allowed,
        seed=plan.sweep.seed,
        reference=given.get("default", np.array([*default.values()])),
        concentration=plan.sweep.concentration,
    )
    labels = [*given, *(f"mix{i:02d}" for i in range(len(given), len(mixtures)))]
    if projection.UNIFORM in labels:
        place = labels.index(projection.UNIFORM)
        labels[place], mixtures[place] = label.replace(" ", "-"), near
    return {
        label: dict(zip(names, map(float, mixture), strict=True))
        for label, mixture in zip(labels, mixtures, strict=True)
    }


def queue(plan: Study, corpus: Corpus, stage: str = keys.SWEEP) -> Queue:
    """The study's queue of runs of a stage, below the active run."""
    active = mlflow.active_run()
    assert active is not None
    experiment = active.info.experiment_id
    return Queue(
        ledger_url=plan.ledger_url(),
        name=f"{stage}-{plan.tag(corpus)}-experiment-{experiment}",
        experiment_id=experiment,
        parent_run_id=active.info.run_id,
        workspace=plan.workspace,
        engine=plan.engine,
    )


def planned_runs(plan: Study, corpus: Corpus) -> list[Run]:
    """The study's proxies and those that wait in the ledger beside them (`design` puts some)."""
    runs = proxy_runs(plan, corpus)
    known = {fingerprint(run) for run in runs}
    there = queue(plan, corpus)
    ledger = Ledger(there.ledger_url, there.name)
    waiting = [run for run in ledger.open_runs() if fingerprint(run) not in known]
    return [*runs, *(run for run in waiting if not plan.broken_rule(run.mixture))]


def withdraw_forbidden(plan: Study, corpus: Corpus, stage: str) -> None:
    """Drop the runs from a queue that break the study's rules, which may be newer than they."""
    there = queue(plan, corpus, stage)
    ledger = Ledger(there.ledger_url, there.name)
    broken = [
        (run, rule)
        for run in ledger.open_runs()
        for rule in [next(filter(None, (plan.broken_rule(m) for _, m in _mixtures_of(run))), "")]
        if rule and stage != keys.CRITICAL
    ]
    if broken:
        ledger.withdraw([run for run, _ in broken])
        rules = "; ".join(dict.fromkeys(rule for _, rule in broken))
        print(
            f"{layout.count(len(broken), 'queued run')} dropped: they break a rule of the study "
            f"({rules})"
        )


def train_missing(
    plan: Study, corpus: Corpus, runs: list[Run], machines: Machines, stage: str
) -> dict[str, str]:
    """Train what MLflow does not hold yet, below the active run; name → MLflow run id of all."""
    active = mlflow.active_run()
    assert active is not None
    experiment = active.info.experiment_id
    if stage != keys.CRITICAL:  # whose mixtures of two sides are the user's own
        plan.refuse_forbidden({name: m for run in runs for name, m in _mixtures_of(run)})
    withdraw_forbidden(plan, corpus, stage)
    done = run_log.settled(experiment, runs[0].stage)
    missing = [run for run in runs if fingerprint(run) not in done]
    run_log.log_datasets(active.info.run_id, corpus)
    print(f"{stage}: {len(runs)} runs, {len(runs) - len(missing)} already trained")
    if missing:
        plan.check_repetition(missing, corpus)
        pool.train(missing, corpus, queue(plan, corpus, stage), machines)
        done = run_log.settled(experiment, runs[0].stage)
        left = [run.name for run in missing if fingerprint(run) not in done]
        if left:
            raise InputError(
                f"{len(left)} runs are not trained ({', '.join(left[:5])} …): their workers died; "
                "start again to train them"
            )
    mlflow.log_metrics({"runs_planned": len(runs), "runs_trained": len(missing)})
    return {run.name: done[fingerprint(run)] for run in runs}


def _mixtures_of(run: Run) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield run.name, run.mixture
    for phase in run.later:
        yield f"{run.name} from {phase.from_tokens:,} tokens", phase.mixture

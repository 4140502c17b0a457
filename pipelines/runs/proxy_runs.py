"""The proxies of a study: design their mixtures, and train the runs that are missing."""

import logging
from collections.abc import Iterator, Mapping

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from optimization.design import space_filling
from optimization.search import projection
from pipelines.runs import earlier_sweeps
from pipelines.study.prepared import Prepared
from pipelines.study.study import Study
from training import run_log
from training.engine.devices import Machines
from training.record import attempts, keys, layout
from training.record.errors import InputError
from training.record.layout import Mixtures
from training.record.mixtures import SAME_DECIMALS
from training.run import Run, fingerprint
from training.workers import pool, slurm
from training.workers.ledger import ATTEMPTS, Ledger
from training.workers.messages import Queue
from training.workers.patience import Patience

logger = logging.getLogger("pipelines")

ROUNDS = 3  # of training what a crash between two entries of the ledger left out


def proxy_runs(prepared: Prepared, earlier: Mixtures | None = None) -> list[Run]:
    """The planned proxies, the largest first: every mixture at every size, and the first one again
    with each further seed. `earlier` mixtures are kept."""
    named = mixtures(prepared, earlier)
    first = dict([next(iter(named.items()))])
    seeds = prepared.study.sweep.seeds
    again = [run for seed in seeds for run in prepared.at_every_size(first, seed)]
    return sorted([*prepared.at_every_size(named), *again], key=lambda run: -run.size.n_params)


def mixtures(prepared: Prepared, earlier: Mixtures | None = None) -> dict[str, dict[str, float]]:
    """Label → mixture of the study's sweep: listed, or designed around the earlier ones."""
    study = prepared.study
    if isinstance(study.sweep.mixtures, int):
        return designed(study, study.sweep.mixtures, prepared.default, earlier)
    return {f"mix{i:02d}": mixture for i, mixture in enumerate(study.listed_mixtures())}


def refuse_design(study: Study, count: int | None = None) -> None:
    """Raise InputError if the study's design has fewer mixtures than `count`, by default the
    sweep's.

    Call it before the text is prepared. A proportional default mixture is not known by then.
    """
    if count is None and study.listed_mixtures():
        return
    number = study.sweep.mixtures if count is None else count
    assert isinstance(number, int)
    default = study.explicit_default()
    # dirichlet draws around the default mixture
    if default is not None or study.sweep.design != space_filling.DIRICHLET:
        designed(study, number, default or dict.fromkeys(study.domains, 1 / len(study.domains)))


def designed(
    study: Study, count: int, default: dict[str, float], earlier: Mixtures | None = None
) -> dict[str, dict[str, float]]:
    """Label → mixture: the default mixture, the uniform one, and others that cover the rest.

    Where bounds forbid the uniform mixture, the nearest allowed one takes its place. A study with
    bundles has only those of the first two that keep its bundles. With `earlier` mixtures, they are
    kept and others cover what they leave.
    """
    if earlier:
        return _grown(study, count, earlier)
    names, allowed = list(study.domains), study.feasible()
    even = np.full(len(names), 1 / len(names))
    fixed = {"default": np.array([*default.values()]), projection.UNIFORM: even}
    label, nearest = projection.uniform(allowed)
    same = np.allclose(nearest, fixed["default"], atol=10**-SAME_DECIMALS)
    if study.bundles:
        fixed = {name: m for name, m in fixed.items() if allowed.inside(m[None])[0]}
    elif label != projection.UNIFORM and same:
        del fixed[projection.UNIFORM]  # the mixture nearest to it is the default one
    drawn = space_filling.designed(
        study.sweep.design,
        count,
        fixed=np.array([*fixed.values()]).reshape(-1, len(names)),
        allowed=allowed,
        seed=study.sweep.seed,
        reference=fixed.get("default", np.array([*default.values()])),
        concentration=study.sweep.concentration,
    )
    labels = [*fixed, *(f"mix{i:02d}" for i in range(len(fixed), len(drawn)))]
    if projection.UNIFORM in labels:
        place = labels.index(projection.UNIFORM)
        labels[place], drawn[place] = label.replace(" ", "-"), nearest
    return {
        label: dict(zip(names, map(float, mixture), strict=True))
        for label, mixture in zip(labels, drawn, strict=True)
    }


def _grown(study: Study, count: int, earlier: Mixtures) -> dict[str, dict[str, float]]:
    """Label → mixture: the first `count` of the earlier ones, and further ones."""
    names, labels = list(study.domains), list(earlier)[:count]
    if len(labels) == count:
        return {label: dict(earlier[label]) for label in labels}
    fixed = np.array([[earlier[label][name] for name in names] for label in labels])
    grown = space_filling.designed(
        study.sweep.design, count, fixed=fixed, allowed=study.feasible(), seed=study.sweep.seed
    )
    labels += [f"mix{i:02d}" for i in range(len(labels), count)]
    return {
        label: dict(zip(names, map(float, mixture), strict=True))
        for label, mixture in zip(labels, grown, strict=True)
    }


def queue(prepared: Prepared, active: mlflow.ActiveRun, stage: str = keys.SWEEP) -> Queue:
    """The study's queue of runs of a stage, below the active run."""
    study, experiment = prepared.study, active.info.experiment_id
    return Queue(
        ledger_url=study.ledger_url(),
        name=f"{stage}-{prepared.tag}-experiment-{experiment}",
        experiment_id=experiment,
        parent_run_id=active.info.run_id,
        workspace=study.workspace,
        engine=study.engine,
    )


def ledger(prepared: Prepared, active: mlflow.ActiveRun, stage: str = keys.SWEEP) -> Ledger:
    """The ledger of this queue."""
    stage_queue = queue(prepared, active, stage)
    return Ledger(stage_queue.ledger_url, stage_queue.name)


def planned_runs(prepared: Prepared, active: mlflow.ActiveRun) -> list[Run]:
    """The study's proxies and the other runs in the ledger's queue (`design` may enqueue some)."""
    runs = proxy_runs(prepared, earlier_sweeps.design(prepared, active.info.experiment_id))
    known = {fingerprint(run) for run in runs}
    waiting = [r for r in ledger(prepared, active).open_runs() if fingerprint(r) not in known]
    return [*runs, *(run for run in waiting if not prepared.study.broken_rule(run.mixture))]


def withdraw_forbidden(prepared: Prepared, active: mlflow.ActiveRun, stage: str) -> None:
    """Drop the runs of a queue that break the study's rules, which may be newer than the queue."""
    book, rule_of = ledger(prepared, active, stage), prepared.study.broken_rule

    def first_broken(run: Run) -> str:
        return next(filter(None, (rule_of(m) for _, m in _mixtures_of(run))), "")

    broken = [(run, rule) for run in book.open_runs() if (rule := first_broken(run))]
    if broken:
        book.withdraw([run for run, _ in broken])
        rules = "; ".join(dict.fromkeys(rule for _, rule in broken))
        logger.info(
            f"{layout.count(len(broken), 'queued run')} dropped: they break a rule of the study "
            f"({rules})"
        )


def train_missing(
    prepared: Prepared,
    runs: list[Run],
    machines: Machines,
    stage: str,
    active: mlflow.ActiveRun,
    array: slurm.Array | None = None,
) -> dict[str, str]:
    """Train the runs that MLflow does not have yet, below the active run: on `machines`, or by the
    tasks of a Slurm array.

    Returns name → MLflow run id for all runs.
    """
    experiment = active.info.experiment_id
    if stage != keys.CRITICAL:  # its mixtures are not bound by the study's rules
        prepared.study.refuse_forbidden({name: m for run in runs for name, m in _mixtures_of(run)})
        withdraw_forbidden(prepared, active, stage)
    done = attempts.finished_ids(experiment, runs[0].stage)
    missing = [run for run in runs if fingerprint(run) not in done]
    run_log.log_datasets(active.info.run_id, prepared.corpus)
    logger.info(f"{stage}: {len(runs)} runs, {len(runs) - len(missing)} already trained")
    if missing:
        prepared.check_repetition(missing)
        done = _trained(missing, prepared, machines, stage, active, array)
    mlflow.log_metrics({"runs_planned": len(runs), "runs_trained": len(missing)})
    return {run.name: done[fingerprint(run)] for run in runs}


def _waits(what: str) -> None:
    logger.warning(f"waiting for {what}")


def _trained(
    missing: list[Run],
    prepared: Prepared,
    machines: Machines,
    stage: str,
    active: mlflow.ActiveRun,
    array: slurm.Array | None,
) -> dict[str, str]:
    """Train these runs; returns fingerprint → MLflow run id of all finished runs.

    Raises InputError for runs whose workers died again and again.
    """
    left, stage_of_runs = missing, missing[0].stage
    patience = Patience(prepared.study.engine.patience_minutes, _waits)
    for _ in range(ROUNDS):
        work = queue(prepared, active, stage)
        if array is None:
            pool.train(left, prepared.corpus, work, machines)
        else:
            slurm.train(left, prepared.corpus, work, array)
        done: dict[str, str] = patience(
            "the tracking server",
            lambda: attempts.finished_ids(active.info.experiment_id, stage_of_runs),
            lambda error: isinstance(error, MlflowException | ConnectionError),
        )
        left = [run for run in left if fingerprint(run) not in done]
        if not left:
            return done
        failed = ledger(prepared, active, stage).given_up(left)
        if failed:
            name, reason = next(iter(failed.items()))
            raise InputError(
                f"{layout.count(len(failed), 'run')} not trained ({layout.some(list(failed))}): "
                f"each failed {ATTEMPTS} times, {name} the last time because: {reason}; start "
                "again to try anew"
            )
    raise InputError(
        f"{layout.count(len(left), 'run')} not trained "
        f"({layout.some([run.name for run in left])}): another command withdrew them; start again "
        "to train them"
    )


def _mixtures_of(run: Run) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield run.name, run.mixture
    for phase in run.later:
        yield f"{run.name} from {phase.from_tokens:,} tokens", phase.mixture

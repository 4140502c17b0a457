"""`sweep`: design the mixtures and train every proxy run that is not finished yet."""

import os
from pathlib import Path

import mlflow
import numpy as np

from optimization import design
from pipelines import entry
from pipelines import study as studies
from pipelines.prepare import prepare
from pipelines.study import Study
from training import crew, record, tracking
from training.corpus import Corpus
from training.errors import InputError
from training.events import Job
from training.settings import Run


def proxy_runs(plan: Study, corpus: Corpus) -> list[Run]:
    """The planned proxies, the largest first: every mixture at every size."""
    names = list(plan.domains)
    lower, upper = plan.limits()
    default = [plan.default(corpus)[name] for name in names]
    uniform = [1 / len(names)] * len(names)
    mixtures = design.space_filling(
        plan.sweep.mixtures,
        given=np.array([default, uniform]),
        lower=np.array(lower),
        upper=np.array(upper),
        seed=plan.sweep.seed,
    )
    labels = ["default", "uniform", *(f"mix{i:02d}" for i in range(2, len(mixtures)))]
    return [
        plan.run(
            corpus,
            f"{label}-{size}",
            dict(zip(names, map(float, mixture), strict=True)),
            size=size,
            seed=plan.sweep.seed,
        )
        for size in sorted(plan.sweep.sizes, key=lambda s: -plan.size(s).n_params)
        for label, mixture in zip(labels, mixtures, strict=True)
    ]


def train_missing(
    plan: Study, corpus: Corpus, runs: list[Run], workers: str, stage: str
) -> dict[str, str]:
    """Train what MLflow does not hold yet, below the active run; name → MLflow run id of all."""
    active = mlflow.active_run()
    assert active is not None
    experiment = active.info.experiment_id
    done = tracking.settled(experiment)
    missing = [run for run in runs if tracking.fingerprint(run) not in done]
    tracking.log_datasets(active.info.run_id, corpus)
    print(f"{stage}: {len(runs)} runs, {len(runs) - len(missing)} already trained")
    if missing:
        count = worker_count(workers)
        job = Job(
            ledger_url=plan.ledger_url(),
            ledger_name=f"{stage}-{plan.tag(corpus)}-experiment-{experiment}",
            tracking_uri=mlflow.get_tracking_uri(),
            experiment_id=experiment,
            parent_run_id=active.info.run_id,
            corpus=corpus.manifest,
            threads=max(1, (os.cpu_count() or 1) // count),
        )
        crew.train_all(missing, corpus.vocab_size, job, count)
        done = tracking.settled(experiment)
        left = [run.name for run in missing if tracking.fingerprint(run) not in done]
        if left:
            raise InputError(
                f"{len(left)} runs are not trained ({', '.join(left[:5])} …): their workers died; "
                "start again to train them"
            )
    mlflow.log_metrics({"runs_planned": len(runs), "runs_trained": len(missing)})
    return {run.name: done[tracking.fingerprint(run)] for run in runs}


def worker_count(text: str) -> int:
    """`auto` is one worker a GPU, or one a core: one-thread processes suit tiny models best."""
    if text != "auto":
        return entry.integer("workers", text, least=1)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is not None:
        return max(1, len([gpu for gpu in gpus.split(",") if gpu]))
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir())) or 1
    except OSError:
        return os.cpu_count() or 1


def sweep(plan: Study, corpus: Corpus, workers: str = "auto") -> None:
    """Train the study's proxies below the active run."""
    active = mlflow.active_run()
    assert active is not None
    mlflow.set_tag(record.STUDY, plan.tag(corpus))
    lower, upper = plan.limits()
    tracking.log_params(
        active.info.run_id,
        {
            record.TARGET_N_PARAMS: plan.size(plan.target.size).n_params,
            record.TARGET_TOKENS: plan.target_tokens(),
            **record.with_prefix(record.WEIGHT, plan.weights()),
            **record.with_prefix(record.DEFAULT_MIXTURE, plan.default(corpus)),
            **record.with_prefix(record.LOWEST, dict(zip(plan.domains, lower, strict=True))),
            **record.with_prefix(record.HIGHEST, dict(zip(plan.domains, upper, strict=True))),
        },
    )
    mlflow.log_dict(plan.model_dump(mode="json"), "study.json")
    runs = proxy_runs(plan, corpus)
    if len({run.name for run in runs}) < len(runs):
        raise InputError("sweep.sizes: a size is named twice")
    train_missing(plan, corpus, runs, workers, record.SWEEP)


def main(study: str, workers: str) -> None:
    plan = studies.load(study)
    sweep(plan, prepare(plan), workers)


if __name__ == "__main__":
    entry.main(record.SWEEP, main, entry.arguments(__doc__, study="quickstart", workers="auto"))

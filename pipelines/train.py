"""`train`: train one model on one mixture."""

import json

from tqdm import tqdm

from pipelines import entry
from pipelines import study as studies
from pipelines.prepare import prepare
from training import record
from training.events import Event, Progress
from training.settings import Run


def train(run: Run, run_id: str) -> None:
    """Train a model in this process into the MLflow run."""
    from training import corpus, worker

    worker.use_device(0, worker.all_threads())
    total = run.training.steps * run.training.tokens_per_step
    with tqdm(total=total, unit=" tokens", unit_scale=True, mininterval=1, desc=run.name) as bar:

        def progress(event: Event) -> None:
            if isinstance(event, Progress):
                bar.update(event.tokens)

        worker.train_and_log(run, corpus.load(run.corpus), run_id, progress)


def main(study: str, mixture: str, size: str, steps: str, seed: str) -> None:
    import mlflow

    plan = studies.load(study)
    plan.size(size)
    proportions = entry.mixture(mixture, list(plan.domains)) if mixture else None
    corpus = prepare(plan)
    count = entry.integer("steps", steps, least=1) if steps else plan.training.steps
    run = plan.run(
        corpus,
        f"train-{size}",
        proportions or plan.default(corpus),
        size=size,
        seed=entry.integer("seed", seed),
        steps=count,
    )
    active = mlflow.active_run()
    assert active is not None
    train(run, active.info.run_id)
    history = record.history_from_tags(mlflow.get_run(active.info.run_id).data.tags)
    assert history is not None
    print(json.dumps(dict(zip(history.domains, history.losses[-1], strict=True)), indent=1))


if __name__ == "__main__":
    entry.main(
        record.PROXY,
        main,
        entry.arguments(__doc__, study="quickstart", mixture="", size="", steps="", seed="0"),
    )

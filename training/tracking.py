"""How a model's training is written to MLflow, as `training.record` names it."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from training import record
from training.corpus import Corpus, TokenFiles
from training.settings import Run

PARAM_BATCH = 100  # params a request, MLflow's limit


@contextmanager
def open_run(**options: Any) -> Iterator[mlflow.ActiveRun]:
    """`mlflow.start_run` whose end tells how it went: FINISHED, KILLED, or FAILED with the reason.

    The reason is the tag `error`.
    """
    with mlflow.start_run(**options) as active:
        try:
            yield active
        except KeyboardInterrupt:
            mlflow.set_tag(record.ERROR, "interrupted")
            mlflow.end_run("KILLED")
            raise
        except Exception as error:
            mlflow.set_tag(record.ERROR, str(error)[: record.TAG_LIMIT])
            raise


def fingerprint(run: Run) -> str:
    """A hash of everything that a run's losses depend on."""
    other = {"name", "stage", "study", "corpus", "size_name", "engine"}
    spec = run.model_dump(mode="json", exclude=other)
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]


def settled(experiment_id: str) -> dict[str, str]:
    """Fingerprint → run id of the runs that need not be trained again: complete or diverged."""
    client = mlflow.MlflowClient()
    found: dict[str, str] = {}
    for state in ("FINISHED", "FAILED"):
        token = None
        while True:
            page = client.search_runs(
                [experiment_id],
                f"attributes.status = '{state}' and tags.{record.FINGERPRINT} != ''",
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                if tags.get(record.COMPLETE) == "true" or record.DIVERGED in tags:
                    found[tags[record.FINGERPRINT]] = run.info.run_id
            token = page.token
            if not token:
                break
    return found


def close_abandoned(experiment_id: str, run: Run) -> None:
    """End earlier attempts at this run that a crash left RUNNING."""
    client = mlflow.MlflowClient()
    attempts = client.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.{record.FINGERPRINT} = '{fingerprint(run)}'",
    )
    for attempt in attempts:
        client.set_tag(attempt.info.run_id, record.ERROR, "its worker died; trained again")
        client.set_terminated(attempt.info.run_id, "KILLED")


class RunLog:
    """Writes one model's training into one MLflow run, an evaluation a batch."""

    def __init__(self, run_id: str, run: Run, corpus: Corpus) -> None:
        self._client = mlflow.MlflowClient()
        self._run_id = run_id
        self._bytes_per_token = {n: files.bytes_per_token for n, files in corpus.domains.items()}
        self._domains = tuple(corpus.domains)
        self._metrics: list[Metric] = []
        self._evaluations: list[tuple[int, int, tuple[float, ...]]] = []
        self._tag(
            {
                record.STAGE: run.stage,
                record.STUDY: run.study,
                record.FINGERPRINT: fingerprint(run),
            }
        )
        log_datasets(run_id, corpus)

    def metric(self, name: str, value: float, step: int) -> None:
        """Keep a metric for the next evaluation's batch."""
        self._metrics.append(Metric(name, value, int(time.time() * 1000), step))

    def evaluation(self, step: int, tokens: int, losses: Mapping[str, float]) -> None:
        """Log one evaluation of all domains, with the metrics kept since the last, at once."""
        for name, loss in losses.items():
            bits_per_byte = loss / math.log(2) / self._bytes_per_token[name]
            self.metric(record.VAL_LOSS + name, loss, step)
            self.metric(record.VAL_BPB + name, bits_per_byte, step)
        self.metric(record.TOKENS, tokens, step)
        self._evaluations.append((step, tokens, tuple(losses[name] for name in self._domains)))
        self.flush()

    def flush(self) -> None:
        """Log the metrics kept so far."""
        self._client.log_batch(self._run_id, metrics=self._metrics)
        self._metrics = []

    def complete(self) -> None:
        """Write the compact history and mark the run complete."""
        steps, tokens, losses = zip(*self._evaluations, strict=True)
        history = record.History(self._domains, steps, tokens, losses)
        self._tag({**record.history_tags(history), record.COMPLETE: "true"})

    def diverged(self, reason: str) -> None:
        """Say why the run has no complete history."""
        self._tag({record.DIVERGED: "true", record.ERROR: reason})

    def _tag(self, tags: Mapping[str, str]) -> None:
        entries = [RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(self._run_id, tags=entries)


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Log any number of params, in as few batches as MLflow allows."""
    entries = [Param(key, str(value)) for key, value in params.items()]
    for start in range(0, len(entries), PARAM_BATCH):
        batch = entries[start : start + PARAM_BATCH]
        mlflow.MlflowClient().log_batch(run_id, params=batch)


def log_datasets(run_id: str, corpus: Corpus) -> None:
    """Log each domain's training and held-out tokens as dataset inputs of a run.

    The parent logs them before its workers do: MLflow's SQL store fails when two processes
    create the same dataset at once.
    """
    inputs = [
        DatasetInput(_dataset(part, files, tokens), [InputTag("mlflow.data.context", context)])
        for name, files in corpus.domains.items()
        for part, context, tokens in (
            (name, "training", files.train_tokens),
            (f"{name}/validation", "validation", files.validation_tokens),
        )
    ]
    mlflow.MlflowClient().log_inputs(run_id, inputs)


def _dataset(name: str, files: TokenFiles, tokens: int) -> Dataset:
    return Dataset(
        name=name,
        digest=files.digest,
        source_type="local",
        source=json.dumps({"uri": files.folder}),
        profile=json.dumps({"num_tokens": tokens, "documents": files.documents}),
    )

"""Logging of a model's training to MLflow, under the names of `training.record.keys`."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from training.data import tasks
from training.data.corpus import Corpus, TokenFiles
from training.data.sampling import MixtureSampler
from training.data.tasks import TaskFiles
from training.delivery.outbox import Outbox
from training.record import keys
from training.record.history import Evaluation, History, history_tags
from training.run import Run, fingerprint

FLUSH_SECONDS = 10  # minimum time between two records of training losses
MAX_DRAW_DEVIATION = 2.5  # sequences × √steps: five standard deviations of systematic sampling
ATTEMPT = "attempt"  # in the state of a log: the name of its outbox


class RunLog:
    """Logs one model's training to one MLflow run through its outbox, one batch per evaluation.

    `saved` is the `state()` of the log in a checkpoint. Its points are logged unless this run has
    them already, so each point is logged once, in the same MLflow run or a new one.
    """

    def __init__(
        self, box: Outbox, run: Run, corpus: Corpus, saved: Mapping[str, Any] | None = None
    ) -> None:
        self._box = box
        self._bytes_per_token = {n: f.bytes_per_token for n, f in corpus.texts.items()}
        for name, files in corpus.tasks.items():
            answers = tasks.evaluated(files, run.validation_tokens, run.training.sequence_length)
            self._bytes_per_token[name] = answers.bytes_per_token
        self._tokens_per_step = run.training.tokens_per_step
        self._length = run.training.sequence_length
        self._points: list[Metric] = []
        self._sent = 0  # number of points logged
        self._sent_at = time.monotonic()
        # step, losses of the evaluated, accuracies of tasks with choices
        self._evaluations: list[tuple[int, tuple[float, ...], tuple[float, ...]]] = []
        self._domains, self._evaluated = tuple(corpus.domains), tuple(corpus.evaluated)
        self._with_choices = tuple(n for n, task in corpus.tasks.items() if task.chance is not None)
        self._logged = box.last_steps([keys.TRAIN_LOSS, keys.TOKENS])
        self.is_new = not box.size()
        self.resumed = saved is not None and saved.get(ATTEMPT) == box.name
        if saved is not None:
            self._restore(saved)
        if self.is_new:
            box.tags(
                {
                    keys.STAGE: run.stage,
                    keys.STUDY: run.study,
                    keys.FINGERPRINT: fingerprint(run),
                }
            )
            box.inputs(_datasets(corpus))

    def state(self) -> dict[str, Any]:
        """The state of this log for a checkpoint; flushes all points first."""
        self._flush()
        return {
            ATTEMPT: self._box.name,
            "points": [(p.key, p.value, p.timestamp, p.step) for p in self._points],
            "evaluations": self._evaluations,
        }

    def training(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Log the training loss, nats per token; points are sent in batches."""
        values = {keys.TRAIN_LOSS: loss, keys.TOKENS_PER_SECOND: tokens_per_second}
        self._add(keys.TRAIN_LOSS, step, values)
        if time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self._flush()

    def evaluation(self, step: int, evaluation: Evaluation, sampler: MixtureSampler) -> None:
        """Log one evaluation and send all pending points."""
        drawn, epochs, planned = sampler.drawn(step), sampler.epochs(step), sampler.planned(step)
        values: dict[str, float] = {keys.TOKENS: step * self._tokens_per_step}
        for name in self._evaluated:
            loss = evaluation.losses[name]
            values[keys.VAL_LOSS + name] = loss
            if math.isfinite(error := evaluation.standard_errors[name]):
                values[keys.VAL_LOSS_SE + name] = error
            values[keys.VAL_BPB + name] = loss / math.log(2) / self._bytes_per_token[name]
        values |= keys.with_prefix(keys.ACCURACY, evaluation.accuracies)
        for i, name in enumerate(self._domains):
            values[keys.TRAINED_TOKENS + name] = int(drawn[i]) * self._length
            values[keys.PLANNED_TOKENS + name] = float(planned[i]) * self._length
            values[keys.EPOCHS + name] = float(epochs[i])
        self._add(keys.TOKENS, step, values)
        losses = tuple(evaluation.losses[name] for name in self._evaluated)
        accuracies = tuple(evaluation.accuracies[name] for name in self._with_choices)
        self._evaluations.append((step, losses, accuracies))
        self._flush()

    def schedule(self, sampler: MixtureSampler) -> None:
        """Log a figure of the schedule as drawn.

        Raises RuntimeError if a domain's tokens deviate from the schedule.
        """
        steps = len(sampler.counts)
        deviation = np.abs(sampler.drawn(steps) - sampler.planned(steps)).max()
        if deviation > MAX_DRAW_DEVIATION * math.sqrt(steps) + 1:
            raise RuntimeError(
                f"a domain's drawn sequences deviate from the schedule by {deviation:.0f}"
            )
        from training.schedule_plot import figure_of  # Matplotlib: a second of most runs' start

        figure = figure_of(sampler, self._domains, self._tokens_per_step)
        with self._box.artifact("figures/schedule.png") as path:
            figure.savefig(path)

    def complete(self) -> float:
        """Log the compact history and mark the run complete; returns the final mean loss."""
        self._flush()
        steps, losses, accuracies = zip(*self._evaluations, strict=True)
        tokens = tuple(step * self._tokens_per_step for step in steps)
        of_tasks = dict(zip(self._with_choices, zip(*accuracies, strict=True), strict=True))
        history = History(self._evaluated, steps, tokens, losses, of_tasks)
        self._box.tags({**history_tags(history), keys.COMPLETE: "true"})
        loss = statistics.fmean(losses[-1])
        self._box.close("FINISHED", loss=loss)
        return loss

    def diverged(self, reason: str) -> None:
        """Log why the run has no complete history."""
        self._flush()
        self._box.tags({keys.DIVERGED: "true", keys.ERROR: reason})
        self._box.close("FAILED", diverged=reason)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._points = [Metric(*point) for point in saved["points"]]
        self._evaluations = [
            (step, tuple(losses), tuple(*accuracies))  # none in checkpoints before version 0.3
            for step, losses, *accuracies in saved["evaluations"]
        ]
        if self.resumed:
            self._sent = len(self._points)  # they were logged before they were saved

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Queue points that are logged together, unless an earlier attempt logged them."""
        now = int(time.time() * 1000)
        points = [Metric(key, value, now, step) for key, value in values.items()]
        if step <= self._logged[group]:
            self._points[self._sent : self._sent] = points
            self._sent += len(points)
        else:
            self._points += points

    def _flush(self) -> None:
        self._box.metrics(self._points[self._sent :])
        self._sent = len(self._points)
        self._sent_at = time.monotonic()


def log_datasets(run_id: str, corpus: Corpus) -> None:
    """Log each domain's training and held-out tokens as dataset inputs of a run.

    The parent logs them before its workers do: MLflow's SQL store fails when two processes
    create the same dataset at once.
    """
    mlflow.MlflowClient().log_inputs(run_id, _datasets(corpus))


def _datasets(corpus: Corpus) -> list[DatasetInput]:
    """What a run trains on and is evaluated on."""
    inputs = [
        DatasetInput(_dataset(part, files, tokens), [InputTag("mlflow.data.context", context)])
        for name, files in corpus.domains.items()
        for part, context, tokens in (
            (name, "training", files.train_tokens),
            (f"{name}/validation", "validation", files.validation_tokens),
        )
    ]
    inputs += [
        DatasetInput(
            _dataset(name, files, files.validation_tokens),
            [InputTag("mlflow.data.context", "validation")],
        )
        for name, files in corpus.sets.items()
    ]
    inputs += [
        DatasetInput(_task(name, task), [InputTag("mlflow.data.context", "validation")])
        for name, task in corpus.tasks.items()
    ]
    return inputs


def _dataset(name: str, files: TokenFiles, tokens: int) -> Dataset:
    profile = {"num_tokens": tokens, "documents": files.documents, "skipped": files.skipped}
    return _input(name, files, profile)


def _task(name: str, task: TaskFiles) -> Dataset:
    profile = {"num_tokens": task.tokens, "questions": task.questions, "skipped": task.skipped}
    return _input(name, task, profile)


def _input(name: str, files: TokenFiles | TaskFiles, profile: Mapping[str, int]) -> Dataset:
    return Dataset(
        name=name,
        digest=files.digest,
        source_type="local",
        source=json.dumps({"uri": files.folder}),
        profile=json.dumps(profile),
    )

"""Logging of a model's training to MLflow, under the names of `training.record.keys`."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import numpy as np
from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from training.data import tasks
from training.data.corpus import Corpus, TokenFiles
from training.data.sampling import MixtureSampler
from training.data.tasks import TaskFiles
from training.record import figures, keys
from training.record.history import Evaluation, History, history_tags
from training.record.mlflow_runs import METRIC_BATCH, close, search
from training.run import Run, fingerprint

FLUSH_SECONDS = 10  # minimum time between two batches of training losses
MAX_DRAW_DEVIATION = 2.5  # sequences × √steps: five standard deviations of systematic sampling
WINDOWS = 40  # intervals in which the drawn tokens are counted


def finished_ids(experiment_id: str, stage: str, fingerprint: str = "") -> dict[str, str]:
    """Fingerprint → id of each complete or diverged run, which need not be trained again; if a
    fingerprint is given, of that run only.

    For the stage `proxy` only proxy runs count, since fits use no others; else runs of any stage.
    """
    runs = finished_runs(experiment_id, stage, fingerprint)
    return {key: run.info.run_id for key, run in runs.items()}


def finished_runs(experiment_id: str, stage: str, fingerprint: str = "") -> dict[str, MlflowRun]:
    """As `finished_ids`, the runs; of several, complete ones first, then ones with a parent run."""
    runs: dict[str, MlflowRun] = {}
    which = f"= '{fingerprint}'" if fingerprint else "!= ''"
    for state in ("FINISHED", "FAILED"):
        query = f"attributes.status = '{state}' and tags.{keys.FINGERPRINT} {which}"
        for run in search([experiment_id], query):
            tags = run.data.tags
            key = tags[keys.FINGERPRINT]
            ended = tags.get(keys.COMPLETE) == "true" or keys.DIVERGED in tags
            ended &= stage != keys.PROXY or tags.get(keys.STAGE) == stage
            if ended and (key not in runs or _rank(run) > _rank(runs[key])):
                runs[key] = run
    return runs


def _rank(run: MlflowRun) -> tuple[bool, bool]:
    return keys.COMPLETE in run.data.tags, keys.PARENT in run.data.tags


def unfinished(run_id: str, experiment_id: str) -> str | None:
    """The run's id if the run is in this experiment and can be resumed, else None."""
    try:
        run = mlflow.get_run(run_id)
    except MlflowException:
        return None  # in another store, or permanently deleted
    active = run.info.lifecycle_stage == "active" and run.info.status != "FINISHED"
    return run_id if active and run.info.experiment_id == experiment_id else None


def close_abandoned(experiment_id: str, run: Run, except_id: str | None = None) -> None:
    """End earlier attempts at this run that a crash left RUNNING, except the one to resume."""
    client = mlflow.MlflowClient()
    attempts = client.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.{keys.FINGERPRINT} = '{fingerprint(run)}'",
    )
    for attempt in attempts:
        if attempt.info.run_id != except_id:
            close(attempt.info.run_id, "its worker died; trained again")


def hand_over(run_id: str, successor: str) -> None:
    """Note in a run, if it is in this store, that another run continues its work."""
    close(run_id, "its process died")
    client = mlflow.MlflowClient()
    try:
        ended = client.get_run(run_id).data.tags.get(keys.ERROR, "it ended")
        client.set_tag(run_id, keys.ERROR, f"{ended}; continued by run {successor}")
    except MlflowException:
        return


class RunLog:
    """Logs one model's training to one MLflow run, one batch per evaluation.

    `saved` is the `state()` of the log in a checkpoint. Its points are logged unless this run has
    them already, so each point is logged once, in the same MLflow run or a new one.
    """

    def __init__(
        self, run_id: str, run: Run, corpus: Corpus, saved: Mapping[str, Any] | None = None
    ) -> None:
        self._client = mlflow.MlflowClient()
        self._run_id = run_id
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
        self._logged = {keys.TRAIN_LOSS: -1, keys.TOKENS: -1}  # last logged steps
        self.resumed = saved is not None and saved["run_id"] == run_id
        if saved is not None:
            self._restore(saved)
        if not self.resumed:
            self._tag(
                {
                    keys.STAGE: run.stage,
                    keys.STUDY: run.study,
                    keys.FINGERPRINT: fingerprint(run),
                }
            )
            log_datasets(run_id, corpus)

    def state(self) -> dict[str, Any]:
        """The state of this log for a checkpoint; flushes all points first."""
        self._flush()
        return {
            "run_id": self._run_id,
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
        figure = _schedule(sampler, self._domains, self._tokens_per_step)
        self._client.log_figure(self._run_id, figure, "figures/schedule.png")

    def complete(self) -> float:
        """Log the compact history and mark the run complete; returns the final mean loss."""
        self._flush()
        steps, losses, accuracies = zip(*self._evaluations, strict=True)
        tokens = tuple(step * self._tokens_per_step for step in steps)
        of_tasks = dict(zip(self._with_choices, zip(*accuracies, strict=True), strict=True))
        history = History(self._evaluated, steps, tokens, losses, of_tasks)
        self._tag({**history_tags(history), keys.COMPLETE: "true"})
        return statistics.fmean(losses[-1])

    def diverged(self, reason: str) -> None:
        """Log why the run has no complete history."""
        self._flush()
        self._tag({keys.DIVERGED: "true", keys.ERROR: reason})

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self._points = [Metric(*point) for point in saved["points"]]
        self._evaluations = [
            (step, tuple(losses), tuple(*accuracies))  # none in checkpoints before version 0.3
            for step, losses, *accuracies in saved["evaluations"]
        ]
        if self.resumed:
            self._sent = len(self._points)  # they were logged before they were saved
            for key in self._logged:
                history = self._client.get_metric_history(self._run_id, key)
                self._logged[key] = max((m.step for m in history), default=-1)
            if keys.ERROR in self._client.get_run(self._run_id).data.tags:
                self._client.delete_tag(self._run_id, keys.ERROR)

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
        for start in range(self._sent, len(self._points), METRIC_BATCH):
            batch = self._points[start : start + METRIC_BATCH]
            self._client.log_batch(self._run_id, metrics=batch)
            self._sent += len(batch)
        self._sent_at = time.monotonic()

    def _tag(self, tags: Mapping[str, str]) -> None:
        entries = [RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(self._run_id, tags=entries)


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
    mlflow.MlflowClient().log_inputs(run_id, inputs)


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


def _schedule(sampler: MixtureSampler, domains: Sequence[str], tokens_per_step: int) -> Figure:
    """Proportions over tokens: planned as lines, drawn as dots."""
    steps = len(sampler.counts)
    ends = np.unique(np.linspace(0, steps, min(WINDOWS, steps) + 1).astype(int))
    drawn = np.diff([sampler.drawn(step) for step in ends], axis=0)
    planned = np.diff([sampler.planned(step) for step in range(steps + 1)], axis=0)
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    lines = planned / planned.sum(axis=1, keepdims=True)
    figure, axis = figures.panels((7, 4.5))
    for i, name in enumerate(domains):
        axis.step(
            np.arange(steps + 1) * tokens_per_step, np.append(lines[:, i], lines[-1, i]),
            where="post", color=f"C{i}", label=name,
        )  # fmt: skip
        middles = (ends[1:] + ends[:-1]) / 2 * tokens_per_step
        axis.plot(middles, shares[:, i], ".", color=f"C{i}", alpha=0.6)
    axis.set_xlabel("tokens")
    axis.set_ylabel("proportion")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_title("The schedule as planned (lines) and as drawn (dots)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure

"""What a model scores on a benchmark: the harness' results as numbers, in MLflow and in words."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis

from training.record import keys, layout
from training.record.mlflow_runs import METRIC_BATCH
from training.record.secrets import masked

Array = np.ndarray
Results = Mapping[str, Any]  # what the harness returns

NO_FILTER = "none"  # the harness' name of a metric's answers as they are
CLOSE = 1e-6  # relative; two ways to compute a score


@dataclass(frozen=True)
class Score:
    """A model's score by one metric on a task, or on a group of tasks."""

    task: str
    metric: str  # such as `acc`; `exact_match/strict-match` if the harness filters the answers
    value: float
    error: float | None  # standard error over the questions
    lower_is_better: bool
    parts: Array | None  # (questions,), the mean is the value; None if the metric has no parts

    @property
    def name(self) -> str:
        """The score's name in MLflow, without its prefix."""
        return keys.benchmark(self.task, self.metric)


@dataclass(frozen=True)
class Outcome:
    """A model's scores on one benchmark: a task, or a group with its tasks."""

    benchmark: str
    scores: tuple[Score, ...]
    results: Results  # all that the harness says, without the questions
    main: frozenset[str]  # the tasks and groups that are part of no group with a score

    @property
    def metrics(self) -> dict[str, float]:
        """The scores and their standard errors by their names in MLflow."""
        values = {}
        for score in self.scores:
            values[f"{keys.BENCHMARK}{score.name}"] = score.value
            if score.error is not None:
                values[f"{keys.BENCHMARK}{score.name}{keys.STANDARD_ERROR}"] = score.error
        return values

    @property
    def shown(self) -> list[Score]:
        """The scores that a table shows: a group's own stand for those of its tasks."""
        return [score for score in self.scores if score.task in self.main]

    @property
    def size(self) -> str:
        """How many questions were asked, with how many examples in the prompt."""
        counts = list(self.results["n-samples"].values())
        asked, whole = (sum(c[key] for c in counts) for key in ("effective", "original"))
        of = "" if asked == whole else f" of {whole:,}"
        shots = sorted({int(self.results["n-shot"].get(t, 0)) for t in self.results["n-samples"]})
        examples = " to ".join(str(n) for n in dict.fromkeys((shots[0], shots[-1])))
        return f"{asked:,}{of} questions, {examples} examples in the prompt"


def outcome(benchmark: str, raw: Results) -> Outcome:
    """The scores in the harness' results, which hold each question."""
    samples = raw["samples"]
    groups = {name: set(members) for name, members in raw["group_subtasks"].items() if members}
    scores = []
    for task, entries in raw["results"].items():
        better = raw["higher_is_better"].get(task) or {}
        for key, value in entries.items():
            metric, comma, filtered = key.rpartition(",")
            number = isinstance(value, int | float) and math.isfinite(value)
            if not (comma and number) or metric.endswith(keys.STANDARD_ERROR):
                continue
            error = entries.get(f"{metric}{keys.STANDARD_ERROR},{filtered}")
            answers = [
                sample[metric]
                for leaf in _leaves(task, groups)
                for sample in samples.get(leaf, [])
                if sample["filter"] == filtered and metric in sample
            ]
            shares = parts(answers, float(value))
            scores.append(
                Score(
                    task=task,
                    metric=metric if filtered == NO_FILTER else f"{metric}/{filtered}",
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) else mean_error(shares),
                    lower_is_better=better.get(metric) is False,
                    parts=shares,
                )
            )
    scored = {score.task for score in scores}
    inner = {t for name in groups.keys() & scored for t in groups[name]}
    rest = {key: value for key, value in raw.items() if key != "samples"}
    return Outcome(benchmark, tuple(scores), rest, frozenset(scored - inner))


def _leaves(task: str, groups: Mapping[str, set[str]]) -> list[str]:
    """The tasks below a group, sorted; a task itself."""
    if task not in groups:
        return [task]
    return sorted({leaf for member in groups[task] for leaf in _leaves(member, groups)})


def parts(answers: Sequence[Any], score: float) -> Array | None:
    """Each question's part of a score, (questions,), whose mean is the score; else None.

    A mean has its questions' values. Bits per byte and perplexities are ratios of sums: of
    log-likelihoods, and of bytes or words; their parts are those of the linearised ratio.
    """
    try:
        values = np.array(answers, dtype=float)
    except (TypeError, ValueError):
        return None
    if values.ndim == 1 and len(values):
        return values if math.isclose(values.mean(), score, rel_tol=CLOSE, abs_tol=CLOSE) else None
    if values.ndim != 2 or values.shape[1] != 2 or values[:, 1].sum() <= 0:
        return None
    likelihoods, weights = values.T
    rate = -likelihoods.sum() / weights.sum()  # nats per byte or word
    deviations = (-likelihoods - rate * weights) / weights.mean()
    for value, slope in ((rate / math.log(2), 1 / math.log(2)), (math.exp(rate), math.exp(rate))):
        if math.isclose(value, score, rel_tol=CLOSE):
            return np.asarray(score + slope * deviations)
    return None


def mean_error(values: Array | None) -> float | None:
    """The standard error of a mean; None for fewer than two values."""
    if values is None or len(values) < 2:
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def log(run_id: str, result: Outcome) -> None:
    """Log a benchmark's scores as metrics of a run, finished or not, and all of it as artifact."""
    client, now = mlflow.MlflowClient(), get_current_time_millis()
    points = [Metric(key, value, now, 0) for key, value in result.metrics.items()]
    for start in range(0, len(points), METRIC_BATCH):
        client.log_batch(run_id, metrics=points[start : start + METRIC_BATCH])
    text = masked(json.dumps(result.results, indent=1, default=str, ensure_ascii=False))
    file = keys.benchmark(result.benchmark).replace("/", "_")
    client.log_text(run_id, text, f"benchmarks/{file}.json")


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A table of the scores: task and metric, value ± standard error."""
    shown = [score for result in outcomes for score in result.shown]
    names = layout.short([score.name for score in shown], layout.WIDTH // 2)
    width = max(layout.cells(name) for name in ("benchmark", *names.values())) + 2
    table = [layout.padded("benchmark", width) + f"{'score':>10}   standard error"]
    for score in shown:
        error = "" if score.error is None else f" ± {score.error:.4f}"
        note = "   (lower is better)" if score.lower_is_better else ""
        table.append(f"{layout.padded(names[score.name], width)}{score.value:>10.4f}{error}{note}")
    sizes = [f"{result.benchmark}: {result.size}" for result in outcomes]
    return [*table, "", *sizes]

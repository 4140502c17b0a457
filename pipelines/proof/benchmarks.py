"""What the trained targets score on benchmarks: best beside default, and their difference."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

import mlflow
import numpy as np
import pandas as pd

from optimization.mixture.solve import BEST, DEFAULT
from pipelines.benchmarks import saved_model, scores
from pipelines.benchmarks.harness import Suite
from pipelines.benchmarks.scores import Outcome, Score
from pipelines.study.prepared import Prepared
from training.record import attempts, keys, layout
from training.record.errors import InputError
from training.run import Run, fingerprint

TABLE = "benchmarks.json"  # the artifact with every target's scores


@dataclass(frozen=True)
class ScoreDifference:
    """How much a score of best lies above that of default, mean over their seeds."""

    best: float
    default: float
    over_questions: float | None  # standard error, of questions drawn anew
    over_seeds: float | None  # standard error, of models trained anew; None with one seed each

    @classmethod
    def of(cls, best: Sequence[Score], default: Sequence[Score]) -> Self:
        """The difference of two mixtures' scores, one a seed, on the same questions."""
        samples = [np.array([score.value for score in side]) for side in (best, default)]
        means = [float(sample.mean()) for sample in samples]
        return cls(means[0], means[1], _question_error(best, default), _seed_error(samples))

    @property
    def value(self) -> float:
        return self.best - self.default

    @property
    def error(self) -> float | None:
        """The standard error over questions and seeds; what both hold counts twice in it."""
        known = [error for error in (self.over_questions, self.over_seeds) if error is not None]
        return math.hypot(*known) if known else None


def _question_error(best: Sequence[Score], default: Sequence[Score]) -> float | None:
    """From the differences question by question; else from both scores' own standard errors."""
    sides = [[score.parts for score in side] for side in (best, default)]
    parts = [part for side in sides for part in side if part is not None]
    if len(parts) == len(best) + len(default):
        differences = np.mean(parts[: len(best)], axis=0) - np.mean(parts[len(best) :], axis=0)
        return scores.mean_error(differences)
    errors = [score.error for score in (*best, *default) if score.error is not None]
    if len(errors) < len(best) + len(default):
        return None
    return math.hypot(float(np.mean(errors[: len(best)])), float(np.mean(errors[len(best) :])))


def _seed_error(samples: Sequence[np.ndarray]) -> float | None:
    """From the spread between seeds, pooled over the two mixtures."""
    degrees = sum(len(sample) - 1 for sample in samples)  # of freedom
    if not degrees:
        return None
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in samples)
    return math.sqrt(squares / degrees * sum(1 / len(sample) for sample in samples))


def saving(prepared: Prepared) -> Prepared:
    """The study, with runs that save their models."""
    engine = prepared.study.engine.model_copy(update={"save_models": True})
    return replace(prepared, study=prepared.study.model_copy(update={"engine": engine}))


def refuse_unsaved(runs: Mapping[str, Run], active: mlflow.ActiveRun) -> None:
    """Raise InputError if one of these runs is trained already and did not save its model."""
    done = {
        key: run.info.run_id
        for key, run in attempts.finished_runs(active.info.experiment_id, keys.TARGET).items()
        if keys.COMPLETE in run.data.tags
    }
    trained = {run.name: done[key] for run in runs.values() if (key := fingerprint(run)) in done}
    lost = {name: run_id for name, run_id in trained.items() if not saved_model.is_saved(run_id)}
    if lost:
        name, run_id = next(iter(lost.items()))
        count = layout.count(len(lost), "target")
        raise InputError(
            f"benchmarks: {count} trained without engine.save_models: true, so no model is saved "
            f"({name}: run {run_id}); delete these runs in MLflow to train them again, or set "
            "another target.seeds"
        )


def compare(table: pd.DataFrame, suite: Suite) -> list[str]:
    """Ask every target of a proof; log its scores to its run and the differences to the active one.

    `table` has a row a target: mixture, seed and run_id. Returns the lines of the report.
    """
    by_run = {str(run_id): list(_asked(str(run_id), suite)) for run_id in table["run_id"].unique()}
    rows = [
        {
            **target[["mixture", "seed", "run_id"]].to_dict(),
            "task": score.task,
            "metric": score.metric,
            "score": score.value,
            "standard_error": score.error,
        }
        for _, target in table.iterrows()
        for outcome in by_run[target["run_id"]]
        for score in outcome.scores
    ]
    mlflow.log_table(pd.DataFrame(rows), TABLE)
    sides = {
        name: _by_name(by_run[run_id] for run_id in table["run_id"][table["mixture"] == name])
        for name in (BEST, DEFAULT)
    }
    counts = (table["mixture"] == BEST).sum(), (table["mixture"] == DEFAULT).sum()
    pairs = {
        n: (sides[BEST].get(n, []), sides[DEFAULT].get(n, []))
        for n in {**sides[BEST], **sides[DEFAULT]}
    }
    differences = {
        name: ScoreDifference.of(best, default)
        for name, (best, default) in pairs.items()
        if (len(best), len(default)) == counts
    }
    metrics = {}
    for name, difference in differences.items():
        key = f"{keys.BENCHMARK_DIFFERENCE}{name}"
        metrics[key] = difference.value
        if difference.error is not None:
            metrics[f"{key}{keys.STANDARD_ERROR}"] = difference.error
    mlflow.log_metrics(metrics)
    outcomes = next(iter(by_run.values()))
    missing = sorted(pairs.keys() - differences.keys())
    return [
        *report(outcomes, differences),
        *(f"{name}: not compared, since a target has no finite score" for name in missing),
    ]


def _asked(run_id: str, suite: Suite) -> Iterator[Outcome]:
    name = mlflow.get_run(run_id).info.run_name
    print(f"benchmarks of {name}", flush=True)
    model = saved_model.find(f"runs:/{run_id}")
    with model.files() as source:
        for outcome in suite.outcomes(source, f"the model of {name}"):
            if not suite.settings.limit:
                scores.log(run_id, outcome)
            yield outcome


def _by_name(seeds: Iterator[list[Outcome]]) -> dict[str, list[Score]]:
    """The scores of a mixture's targets, one a seed, by name."""
    every = [score for outcomes in seeds for outcome in outcomes for score in outcome.scores]
    ordered = sorted(every, key=lambda score: score.name)  # stable: the seeds keep their order
    return {name: list(own) for name, own in groupby(ordered, key=lambda score: score.name)}


def report(outcomes: Sequence[Outcome], differences: Mapping[str, ScoreDifference]) -> list[str]:
    """Each benchmark's scores of best and default, and their difference with its standard error."""
    every = [score for outcome in outcomes for score in outcome.shown]
    shown = [score for score in every if score.name in differences]
    names = layout.short([score.name for score in shown])
    width = max(layout.cells(name) for name in ("benchmark", *names.values())) + 1
    head = f"{layout.padded('benchmark', width)}{BEST:>10}{DEFAULT:>10}"
    lines = [f"{head}  {BEST} − {DEFAULT} ± its standard error"]
    for score in shown:
        one = differences[score.name]
        error = "" if one.error is None else f" ± {one.error:.4f}"
        note = "   (lower is better)" if score.lower_is_better else ""
        lines.append(
            f"{layout.padded(names[score.name], width)}{one.best:>10.4f}{one.default:>10.4f}"
            f"  {one.value:+.4f}{error}{note}"
        )
    if all(one.over_seeds is None for one in differences.values()):
        lines.append("one seed each: the standard errors are over the questions alone")
    return [*lines, *(f"{outcome.benchmark}: {outcome.size}" for outcome in outcomes)]

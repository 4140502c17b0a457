"""`verify -P benchmarks=…`: best beside default, and the standard error of their difference."""

import math
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines.benchmarks.scores import Score
from pipelines.proof.benchmarks import ScoreDifference, refuse_unsaved
from tests.support.commands import run_entry
from tests.support.quizzes import written_task
from tests.support.studies import WriteStudy
from tests.support.tiny_runs import unprepared
from training.record import keys
from training.record.errors import InputError
from training.run import fingerprint

METRIC = "benchmark/quiz/acc"


def asked(
    ability: float, hardness: np.ndarray, rng: np.random.Generator, *, parts: bool = True
) -> Score:
    """A model's score on questions of a hardness."""
    right = (ability - hardness + rng.normal(0, 0.3, len(hardness)) > 0).astype(float)
    error = float(right.std(ddof=1) / math.sqrt(len(right)))
    return Score("quiz", "acc", float(right.mean()), error, False, right if parts else None)


def test_the_standard_error_of_a_difference() -> None:
    """Over questions it is that of models on the same questions, over seeds that of the models."""
    rng = np.random.default_rng(0)
    one = [ScoreDifference.of(*drawn(rng, spread=0.0)) for _ in range(1000)]
    means = np.array([difference.value for difference in one])
    errors = np.array([difference.over_questions for difference in one], dtype=float)
    assert means.std() == pytest.approx(errors.mean(), rel=0.1)
    apart = ScoreDifference.of(*drawn(rng, spread=0.0, parts=False))
    assert apart.over_questions is not None
    assert apart.over_questions > 1.3 * errors.mean()  # as of two sets of questions
    two = [ScoreDifference.of(*drawn(rng, spread=0.2, seeds=2)) for _ in range(1000)]
    spread = np.std([difference.value for difference in two])
    assert math.sqrt(np.mean([d.error**2 for d in two if d.error])) == pytest.approx(
        spread, rel=0.15
    )
    assert all(difference.over_seeds is None for difference in one)


def drawn(
    rng: np.random.Generator, spread: float, seeds: int = 1, *, parts: bool = True
) -> tuple[list[Score], list[Score]]:
    """Best and default, whose seeds differ in ability, on the same questions."""
    hardness = rng.normal(0, 1, 100)
    best, default = (
        [asked(a + rng.normal(0, spread), hardness, rng, parts=parts) for _ in range(seeds)]
        for a in (0.3, 0.0)
    )
    return best, default


@pytest.mark.slow
def test_verify_compares_best_and_default(
    store: str, miniature: dict[str, Any], write_study: WriteStudy, tmp_path: Path
) -> None:
    assert store
    study, quiz = write_study(miniature), written_task(tmp_path, "quiz")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    for command in ("sweep", "fit"):
        done = run_entry(command, "--study", study)
        assert done.returncode == 0, done.stderr[-3000:]
    done = run_entry("verify", "--study", study, "--benchmarks", quiz, env=env)
    assert done.returncode == 0, done.stderr[-3000:]

    (run,) = mlflow.search_runs(["0"], "tags.stage = 'verify'", output_format="list")
    table = pd.DataFrame(**_table(run.info.run_id))
    rows = table[table["metric"] == "acc"]
    assert set(rows["mixture"]) == {"best", "default", "uniform", "best observed"}
    for row in rows.itertuples():
        assert mlflow.get_run(row.run_id).data.metrics[METRIC] == pytest.approx(row.score)
    best, default = (rows["score"][rows["mixture"] == n].to_numpy() for n in ("best", "default"))
    assert len(best) == len(default) == 2
    metrics, name = run.data.metrics, "benchmark_difference/quiz/acc"
    assert metrics[name] == pytest.approx(best.mean() - default.mean())
    over_seeds = math.sqrt((best.var(ddof=1) + default.var(ddof=1)) / 2)
    assert metrics[f"{name}_stderr"] >= over_seeds
    row_text = f"{best.mean():.4f} {default.mean():9.4f}  {metrics[name]:+.4f} ± "
    assert re.search(r"^quiz/acc +" + re.escape(row_text), done.stdout, re.M)
    assert "benchmark" in run.data.tags["mlflow.note.content"]


def test_a_target_without_its_model_is_told_of(store: str) -> None:
    assert store
    saved, lost, diverged, new = (unprepared(name, i) for i, name in enumerate("abcd"))
    ids = {}
    for run in (saved, lost, diverged):
        tags = {keys.FINGERPRINT: fingerprint(run), keys.COMPLETE: "true"}
        if run is diverged:
            tags = {keys.FINGERPRINT: fingerprint(run), keys.DIVERGED: "true"}
        with mlflow.start_run(tags=tags) as active:
            ids[run.name] = active.info.run_id
            if run is saved:
                mlflow.log_dict({}, "model/config.json")
    refuse_unsaved({run.name: run for run in (saved, diverged, new)}, active)
    message = f"benchmarks: 1 target trained without .* \\(b: run {ids['b']}\\); delete these runs"
    with pytest.raises(InputError, match=message):
        refuse_unsaved({run.name: run for run in (saved, lost, diverged, new)}, active)


def _table(run_id: str) -> dict[str, Any]:
    table = mlflow.artifacts.load_dict(f"runs:/{run_id}/benchmarks.json")
    return {"data": table["data"], "columns": table["columns"]}

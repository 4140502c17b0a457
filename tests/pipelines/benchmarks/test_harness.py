"""Mistakes in the names of benchmarks and models are one line each."""

import re
from pathlib import Path

import mlflow
import pytest

from pipelines.benchmarks import harness, saved_model
from tests.support.quizzes import written_task
from training.record.errors import InputError

SETTINGS = harness.Settings(limit=None, few_shot=None, batch_size=4)


pytestmark = pytest.mark.usefixtures("no_hub")


def refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        harness.load(names, SETTINGS)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_task(tmp_path: Path) -> None:
    quiz = written_task(tmp_path, "quiz")
    twice = written_task(tmp_path, "twice", task="quiz")
    lost = written_task(tmp_path, "lost", dataset_kwargs={"data_files": {"test": "/no/file.jsonl"}})
    unknown = written_task(tmp_path, "unknown", metric_list=[{"metric": "exactness"}])
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [")
    refused([], "benchmarks: name a task of lm-eval or a YAML file")
    refused(["none.yaml"], "benchmarks: there is no file 'none.yaml'")
    refused([quiz, twice], "benchmarks: 'quiz' and 'quiz' both hold task 'quiz'")
    for path in (lost, unknown, str(broken)):
        refused([path], f"benchmarks: {path!r} cannot be loaded: ")


@pytest.mark.slow
def test_a_name_of_the_harness() -> None:
    refused(["arc_eazy"], "benchmarks: lm-eval has no task 'arc_eazy'; the nearest is 'arc_easy'.")
    refused(["arc_easy"], "benchmarks: the questions of 'arc_easy' come from the Hugging Face hub,")


def test_a_task_whose_questions_lack_a_field(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    quiz = written_task(tmp_path, "quiz", doc_to_choice="answers")
    refused([quiz], f"benchmarks: {quiz!r} cannot be loaded: ")


def test_a_model_that_is_not_there(store: str, tmp_path: Path) -> None:
    assert store
    with mlflow.start_run() as run:
        pass
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"model_type": "gpt_neox"}')
    for location, message in {
        "": "model: name one; a model is runs:/<id>/model",
        "runs:/none/model": "model: 'runs:/none/model': Run with id=none not found",
        f"runs:/{run.info.run_id}": "has no artifact 'model'; a run saves its model with engine.sa",
        "models:/none/1": "model: 'models:/none/1': Model Version (name=none, version=1) not found",
        "./none": "model: './none' is not a folder; a model is",
        str(bare): f"model: {str(bare)!r} holds no tokenizer (tokenizer.json, tokenizer_config",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):  # noqa: SIM117
            with saved_model.find(location).files():
                pass

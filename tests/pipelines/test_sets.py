"""A study that is judged on text and tasks that it does not train on."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from tests.support.commands import run_entry
from training.data import hashing
from training.record import keys
from training.record.history import history_from_tags

Write = Callable[[dict[str, Any]], str]
FRACTION = 0.1


def judged_elsewhere(
    study: dict[str, Any], folder: Path, texts: dict[str, list[str]]
) -> tuple[dict[str, Any], str]:
    """The study with two foreign sets, of which a whole document and a paragraph stand in its
    training text, and two tasks, a question of which stands there; and that document."""
    rng = random.Random(5)
    sets = {
        name: [" ".join(rng.choices(words.split(), k=150)) for _ in range(60)]
        for name, words in {
            "wiki": "the market of numbers rose less than one real official said in print trade",
            "exam": "let def x return squares if number else sum value in range is such that",
        }.items()
    }
    (folder / "wiki.jsonl").write_text(
        "\n".join(json.dumps({"body": text}) for text in sets["wiki"])
    )
    table = pd.DataFrame({"text": sets["exam"], "kind": "exam"})
    other = pd.DataFrame({"text": ["not of the set"], "kind": "other"})
    pd.concat([table, other]).to_parquet(folder / "mixed.parquet")
    whole = sets["wiki"][7]
    paragraph = " ".join(sets["exam"][9].split()[40:70])
    train = [t for t in texts["code"] if not hashing.held_out(f"{t} {paragraph}", FRACTION)]
    quiz = _write_tasks(folder, rng, texts)
    asked = f"{quiz['question']} {quiz['choices'][quiz['label']]}"
    seen = [t for t in texts["math"] if not hashing.held_out(f"{t} {asked}", FRACTION)]
    planted_texts = {
        "news": whole,
        "code": f"{train[0]} {paragraph}",
        "math": f"{seen[0]} {asked}",
    }
    for name, planted in planted_texts.items():
        with (folder / f"{name}.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"text": planted}))
    validation = {
        "fraction": FRACTION,
        "tokens": 1024,
        "sets": {
            "wiki": {"files": "wiki.jsonl", "text_column": "body"},
            "exam": {"files": "mixed.parquet", "domain_column": "kind", "domain_value": "exam"},
        },
        "tasks": {
            "quiz": {
                "files": "quiz.jsonl",
                "prompt_column": "question",
                "choices_column": "choices",
                "label_column": "label",
            },
            "sums": {"files": "sums.parquet", "answer_column": "answer"},
        },
        "weights": {"quiz": 2, "sums": 1},
        "unit": "bits_per_byte",
    }
    return {**study, "validation": validation}, whole


def _write_tasks(folder: Path, rng: random.Random, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Questions how code goes on, as JSONL, and how mathematics does, as Parquet; the first
    question."""
    words = {name: sorted(set(documents[0].split())) for name, documents in texts.items()}

    def some(name: str, count: int) -> str:
        return " ".join(rng.choices(words[name], k=count))

    quiz = []
    for number in range(80):
        choices = [some("news", 4), some("math", 4)]
        choices.insert(number % 3, some("code", 4))
        quiz.append({"question": some("code", 14), "choices": choices, "label": number % 3})
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, quiz)))
    answers = [{"prompt": some("math", 10), "answer": some("math", 5)} for _ in range(60)]
    pd.DataFrame(answers).to_parquet(folder / "sums.parquet")
    return quiz[0]


@pytest.mark.slow
def test_a_mixture_is_found_for_text_that_nothing_trains_on(
    store: str,
    miniature: dict[str, Any],
    write_study: Write,
    texts: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    assert store
    study, whole = judged_elsewhere(miniature, tmp_path, texts)
    assert not hashing.held_out(whole, FRACTION)  # so it would be trained on
    done = run_entry("main", "--study", write_study(study))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "left out of the training text: 1 documents" in done.stderr
    assert f"of 'news' hold text of the set 'wiki', for one: '{whole.split()[0]} " in done.stderr
    assert "of 'code' hold text of the set 'exam', for one: '" in done.stderr
    assert "of 'math' hold text of the task 'quiz', for one: '" in done.stderr

    runs = mlflow.search_runs(output_format="list", search_all_experiments=True)
    (proxy, *_) = [run for run in runs if run.data.tags.get(keys.STAGE) == keys.PROXY]
    history = history_from_tags(proxy.data.tags)
    assert history is not None
    names = [*texts, "wiki", "exam", "quiz", "sums"]
    assert list(history.domains) == names
    for prefix in (keys.VAL_LOSS, keys.VAL_BPB, keys.VAL_LOSS_SE):
        assert {name for name in names if f"{prefix}{name}" in proxy.data.metrics} == set(names)
    inputs = {one.dataset.name for one in proxy.inputs.dataset_inputs}
    assert {"news", "news/validation", *names} <= inputs
    assert 0 <= proxy.data.metrics["accuracy/quiz"] <= 1
    assert "accuracy/sums" not in proxy.data.metrics
    assert history.accuracies["quiz"][-1] == proxy.data.metrics["accuracy/quiz"]
    assert float(proxy.data.params["chance/quiz"]) == pytest.approx(1 / 3)
    (prepared,) = [run for run in runs if run.data.tags.get(keys.STAGE) == keys.PREPARE]
    found = mlflow.artifacts.load_dict(f"runs:/{prepared.info.run_id}/leaks.json")
    counted = {d: {s: leak["documents"] for s, leak in sets.items()} for d, sets in found.items()}
    assert counted == {"news": {"wiki": 1}, "code": {"exam": 1}, "math": {"quiz": 1}}
    model = mlflow.pyfunc.load_model("models:/mixture-predictor/1")
    answer = model.predict(
        pd.DataFrame([{"mixture/news": 0.5, "mixture/code": 0.3, "mixture/math": 0.2}])
    ).iloc[0]
    objective = (2 * answer["val_loss/quiz"] + answer["val_loss/sums"]) / 3
    assert answer["objective"] == pytest.approx(objective)
    assert model.metadata.metadata["unit"] == "bits_per_byte"
    (verify,) = [run for run in runs if run.data.tags.get(keys.STAGE) == keys.VERIFY]
    uri = f"runs:/{verify.info.run_id}/measured_beside_predicted.json"
    raw = mlflow.artifacts.load_dict(uri)
    table = pd.DataFrame(raw["data"], columns=raw["columns"])
    assert {f"predicted/{name}" for name in names} <= set(table)
    for _, row in table.iterrows():
        metrics = mlflow.get_run(row["run_id"]).data.metrics
        for name in names:
            assert row[f"measured/{name}"] == pytest.approx(metrics[f"val_bpb/{name}"], rel=1e-6)
        assert row["measured_accuracy/quiz"] == pytest.approx(metrics["accuracy/quiz"])
        bits = (2 * metrics["val_bpb/quiz"] + metrics["val_bpb/sums"]) / 3
        assert row["measured"] == pytest.approx(bits, rel=1e-6)
    assert "losses in bits/byte" in done.stdout
    assert "accuracy of quiz" in done.stdout

    searched = run_entry("optimize", "--study", write_study(study), "--objective", "wiki,quiz")
    assert searched.returncode == 0, searched.stderr[-3000:]


@pytest.mark.slow
def test_continuations_and_schedules_take_sets_and_tasks_in_bits_per_byte(
    store: str,
    miniature: dict[str, Any],
    write_study: Write,
    texts: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    assert store
    study, _ = judged_elsewhere(miniature, tmp_path, texts)
    critical = {
        "size": "tiny",
        "base_steps": 12,
        "original": {"news": 0.5, "code": 0.5},
        "new": {"math": 1},
        "new_validation": ["sums"],
        "steps": 8,
        "shares": [0.1, 0.4, 0.7, 0.9],
        "seeds": [1],
    }
    phases = {"size": "tiny", "steps": [6, 6], "mixtures": 4, "trunks": 2, "seeds": [1, 2]}
    path = write_study({**study, "critical": critical, "phases": phases})
    continued, scheduled = (run_entry(name, "--study", path) for name in ("critical", "schedule"))
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert scheduled.returncode == 0, scheduled.stderr[-3000:]

    runs = mlflow.search_runs(output_format="list", search_all_experiments=True)
    names = {run.info.run_name: run for run in runs}
    (check,) = [run for name, run in names.items() if name.startswith("critical-0-seed1")]
    shown = next(x for x in continued.stdout.splitlines() if x.startswith("critical-0-seed1"))
    original, new = float(shown.split()[2]), float(shown.split()[4])
    assert original == pytest.approx(check.data.metrics["val_bpb/quiz"], abs=6e-5)
    assert new == pytest.approx(check.data.metrics["val_bpb/sums"], abs=6e-5)
    assert "bits/byte over 2 seeds" in scheduled.stdout
    metrics = names["schedule-seed1"].data.metrics
    objective = (2 * metrics["val_bpb/quiz"] + metrics["val_bpb/sums"]) / 3
    assert f"{objective:.4f}" in scheduled.stdout


@pytest.mark.slow
def test_bad_sets_and_tasks_are_refused_in_one_line(
    store: str,
    miniature: dict[str, Any],
    write_study: Write,
    texts: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    assert store
    study, _ = judged_elsewhere(miniature, tmp_path, texts)
    validation = study["validation"]
    (tmp_path / "empty.jsonl").write_text("")
    quiz = validation["tasks"]["quiz"]
    (tmp_path / "labels.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "label": 3}')
    (tmp_path / "lines.txt").write_text("no columns")
    for change, told in (
        ({"decontaminate": "refuse"}, "hold text of the set 'wiki'"),
        ({"sets": {"wiki": {"files": "empty.jsonl"}}, "weights": None}, "set 'wiki': "),
        ({"tasks": {"quiz": quiz | {"files": "labels.jsonl"}}, "weights": None}, "holds 3, which"),
        ({"tasks": {"quiz": quiz | {"files": "lines.txt"}}, "weights": None}, "made of columns"),
    ):
        done = run_entry(
            "prepare", "--study", write_study({**study, "validation": validation | change})
        )
        assert done.returncode == 1, told
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("prepare: ")]
        assert told in line
        assert "Traceback" not in done.stderr


def test_studies_without_sets_are_prepared_as_before(
    miniature: dict[str, Any], write_study: Write
) -> None:
    from pipelines.prepare import prepare
    from pipelines.study import load as studies

    prepared = prepare(studies.load(write_study(miniature)))
    raw = json.loads(prepared.corpus.manifest.read_text())
    assert "sets" not in raw
    assert not any("leaks" in files for files in raw["domains"].values())
    again = {**miniature, "validation": miniature["validation"] | {"decontaminate": "refuse"}}
    assert prepare(studies.load(write_study(again))).tag == prepared.tag

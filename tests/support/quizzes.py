"""Local benchmarks: a task of multiple choice and one of plain text."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = ("number", "market", "return", "prices", "import", "spring", "trade", "squares", "value")


def questions(count: int = 24) -> list[dict[str, Any]]:
    """Made-up questions with three answers each."""
    rng = random.Random(1)
    return [
        {
            "question": f"let {rng.choice(WORDS)} be a {rng.choice(WORDS)}",
            "choices": rng.sample(WORDS, 3),
            "answer": rng.randrange(3),
        }
        for _ in range(count)
    ]


def written_task(folder: Path, name: str, **changes: Any) -> str:
    """Write the questions and a task's YAML into a folder; the path of the YAML."""
    lines = (json.dumps(question) for question in questions())
    data = folder / "questions.jsonl"
    data.write_text("\n".join(lines))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    return str(path)


def written_text(folder: Path, name: str) -> str:
    """A task whose score is how well the questions' text is predicted."""
    return written_task(
        folder,
        name,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )

"""A study of seconds."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

WriteStudy = Callable[[dict[str, Any]], str]  # writes a study file and returns its path


def made_up_texts() -> dict[str, list[str]]:
    """Three made-up domains with words of their own: domain → documents."""
    rng = random.Random(0)
    sentences = {
        "news": "the market rose as officials said prices fell in spring trade talks",
        "code": "def return self if else for in range print len import value = ( ) :",
        "math": "let x be a real number such that the sum of squares is less than one",
    }
    vocabularies = {name: sentence.split() for name, sentence in sentences.items()}
    return {
        name: [" ".join(rng.choices(words, k=120)) for _ in range(400)]
        for name, words in vocabularies.items()
    }


def miniature_study(folder: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Write the texts as JSONL files into a folder and return a study of them."""
    for name, documents in texts.items():
        lines = (json.dumps({"text": document}) for document in documents)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "name": "miniature",
        "domains": {name: {"files": f"{name}.jsonl"} for name in texts},
        "default_mixture": {"news": 0.6, "code": 0.3, "math": 0.1},
        "tokenizer": {"vocab_size": 320},
        "validation": {"fraction": 0.1, "tokens": 1024},
        "sizes": {
            "tiny": {"hidden_size": 16, "layers": 1, "heads": 1},
            "small": {"hidden_size": 32, "layers": 1, "heads": 2},
        },
        "training": {
            "sequence_length": 32,
            "batch_size": 8,
            "steps": 12,
            "warmup_steps": 4,
            "first_evaluation": 4,
            "evaluations": 3,
        },
        "sweep": {"mixtures": 4, "sizes": ["tiny", "small"]},
        "target": {"size": "small", "steps": 18, "seeds": [0, 1]},
        "search": {"trials": 60},
        "workspace": str(folder / "workspace"),
    }


def written(folder: Path, study: dict[str, Any]) -> str:
    """The path of a study file in a folder."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)

"""Runs of a fraction of a second on random tokens, trained by a real engine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from training.config import Size, Training
from training.data.corpus import Corpus, TokenFiles
from training.data.tasks import ROW, TaskFiles
from training.engine import trainer as trainers
from training.record import keys
from training.record.history import Evaluation
from training.run import Phase, Run

DOMAINS = ("news", "code", "math")
TRAINING = Training(
    sequence_length=32,
    batch_size=8,
    steps=37,
    warmup_steps=5,
    first_evaluation=5,
    evaluations=4,
)
PER_STEP = TRAINING.tokens_per_step
CODE = {"news": 0.1, "code": 0.9, "math": 0.0}
MATH = {"news": 0.0, "code": 0.25, "math": 0.75}
PHASES = (  # after the first, of a schedule
    Phase(from_tokens=12 * PER_STEP, mixture=CODE),
    Phase(from_tokens=25 * PER_STEP, mixture=MATH),
)


def random_corpus(folder: Path) -> Corpus:
    """Three domains and a task of random tokens from vocabularies of different sizes."""
    rng = np.random.default_rng(0)
    domains = {}
    for i, name in enumerate(DOMAINS):
        (folder / name).mkdir()
        for part, count in (("train", 50_000), ("validation", 5_000)):
            tokens = rng.integers(0, 300 // (i + 1), count).astype("uint16")
            tokens.tofile(folder / name / f"{part}.bin")
            ends = np.arange(100, count + 1, 100, dtype="uint64")
            ends.tofile(folder / name / f"{part}.idx")
        domains[name] = TokenFiles(str(folder / name), "uint16", 50_000, 5_000, 2.0, 550, name, 3)
    tasks = {"quiz": _random_task(folder / "quiz", rng)}
    manifest = folder / "corpora" / "manifest.json"
    files = {name: dataclasses.asdict(domain) for name, domain in domains.items()}
    of_tasks = {name: dataclasses.asdict(task) for name, task in tasks.items()}
    manifest.parent.mkdir()
    manifest.write_text(
        json.dumps({"tokenizer": "none", "vocab_size": 320, "domains": files, "tasks": of_tasks})
    )
    return Corpus(manifest, "none", 320, domains, tasks=tasks)


def _random_task(folder: Path, rng: np.random.Generator) -> TaskFiles:
    """Forty questions of three choices, some longer than the context."""
    folder.mkdir()
    lengths = rng.integers(2, 12, 120)
    prompts = np.repeat(rng.integers(1, 40, 40), 3)
    ends = np.cumsum(prompts + lengths)
    right = np.zeros((40, 3), bool)
    right[np.arange(40), rng.integers(0, 3, 40)] = True
    rng.integers(0, 150, ends[-1]).astype("uint16").tofile(folder / "answers.bin")
    sizes, questions = 2 * lengths + 1, np.repeat(np.arange(40), 3)
    rows = zip(ends, prompts, lengths, sizes, questions, right.ravel(), strict=True)
    np.save(folder / "rows.npy", np.array(list(rows), ROW))
    longest = int(lengths.max())
    return TaskFiles(str(folder), "uint16", 40, int(ends[-1]), longest, 1 / 3, "quiz", 3)


def planned(corpus: Corpus, **changes: Any) -> Run:
    """A run of a fraction of a second."""
    settings: dict[str, Any] = {
        "name": "run",
        "stage": keys.PROXY,
        "study": "s",
        "workspace": corpus.manifest.parent.parent,
        "corpus": corpus.manifest,
        "corpus_digest": corpus.digest,
        "mixture": {"news": 0.5, "code": 0.3, "math": 0.2},
        "size_name": "tiny",
        "size": Size(hidden_size=32, layers=2, heads=2),
        "training": TRAINING,
        "validation_tokens": 1000,
        "seed": 1,
    }
    return Run(**{**settings, **changes})


def evaluations(run: Run, corpus: Corpus, **options: Any) -> list[tuple[int, Evaluation]]:
    trainer = trainers.Trainer(run, corpus, **options)
    found = [(r.step, r.evaluation) for r in trainer.reports() if r.evaluation]
    trainer.close()
    return found


def unprepared(name: str, seed: int) -> Run:
    """A run that needs no prepared text."""
    return Run(
        name=name,
        stage="proxy",
        study="s",
        workspace=Path("workspace"),
        corpus=Path("corpus.json"),
        corpus_digest="d",
        mixture={"a": 0.5, "b": 0.5},
        size_name="tiny",
        size=Size(hidden_size=16, layers=1, heads=1),
        training=Training(steps=4, first_evaluation=2),
        validation_tokens=64,
        seed=seed,
    )


RUNS = [unprepared(f"run{i}", i) for i in range(5)]

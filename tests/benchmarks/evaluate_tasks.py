"""Tokens a second of evaluating sets and tasks beside plain validation, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.evaluate_tasks

The same model evaluates the held-out text of embedded domains, of a set, and the answers of a task
of four choices, each of the same number of tokens. The three take turns; the median of their
ratios counts.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_runs import planned
from training.config import LADDER, Domain, Task, Tokenizer, Training, Validation
from training.data import corpus as corpora
from training.data import tasks
from training.data.corpus import Corpus
from training.engine import trainer as trainers
from training.engine.evaluation import Evaluator

TOKENS = 32_768
LENGTH = 128
BATCH = 16
TURNS = 9


def prepared(folder: Path) -> Corpus:
    validation = Validation(
        fraction=0.3,
        tokens=TOKENS,
        sets={"stubs": Domain(embedded="stubs", max_mb=0.3)},
        tasks={"next": Task(embedded="web", max_mb=0.5)},
    )
    domains = {
        "python": Domain(embedded="python", max_mb=1),
        "cpp": Domain(embedded="cpp", max_mb=1),
    }
    return corpora.prepare(domains, Tokenizer(vocab_size=1024), validation, LENGTH, folder)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole = prepared(Path(folder))
        one = {"python": whole.domains["python"]}
        parts = {
            "validation": dataclasses.replace(whole, domains=one, sets={}, tasks={}),
            "and a set": dataclasses.replace(whole, domains=one, tasks={}),
            "and a task": dataclasses.replace(whole, domains=one, sets={}),
        }
        training = Training(
            sequence_length=LENGTH, batch_size=BATCH, steps=1, first_evaluation=1, warmup_steps=0
        )
        run = planned(
            whole,
            mixture={"python": 0.5, "cpp": 0.5},
            size=LADDER["0.8M"],
            training=training,
            validation_tokens=TOKENS,
        )
        trainer = trainers.Trainer(run, whole)
        evaluators = {name: Evaluator(run, text, BATCH) for name, text in parts.items()}
        seconds: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(TURNS):
            for name, evaluator in evaluators.items():
                seconds[name].append(_timed(evaluator, trainer.engine))
        trainer.close()
        answers = tasks.evaluated(whole.tasks["next"], TOKENS, LENGTH)
    read = {"and a set": TOKENS, "and a task": sum(map(len, answers.tokens))}
    plain = seconds["validation"]
    print(f"validation        {TOKENS / statistics.median(plain):9,.0f} tokens/s")
    for name, tokens in read.items():
        ratios = [
            tokens / (both - alone) / (TOKENS / alone)
            for both, alone in zip(seconds[name], plain, strict=True)
        ]
        print(f"{name:18}{statistics.median(ratios):9.2f} of that, {tokens:,} tokens")


def _timed(evaluator: Evaluator, engine: Any) -> float:
    engine.eval()
    began = time.perf_counter()
    evaluator.evaluate(engine, 0, 1)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

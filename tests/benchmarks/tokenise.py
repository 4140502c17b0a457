"""Megabytes a second that `prepare` tokenises, beside `datasets.map` with the same tokenizer.

Run it from the project's folder: python -m tests.benchmarks.tokenise
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import transformers

from training.config import Domain, Tokenizer, Validation
from training.data import corpus, embedded
from training.data import tokenizer as tokenizers


def texts(megabytes: float) -> Iterator[str]:
    """About this much text that the environment's packages ship, as often as it takes."""
    left = megabytes * 1e6
    while left > 0:
        for kind in ("cpp", "web", "tables"):
            for text in embedded.documents(kind):
                yield text
                left -= len(text.encode())
                if left <= 0:
                    return


def trained_tokenizer(source: Path, vocab_size: int, workspace: Path) -> str:
    """The folder of a BPE trained as a study's is, on more text."""
    tokenizers.BPE_SAMPLE = 10_000_000
    made = corpus.prepare(
        {"sample": Domain(files=str(source), max_mb=12)},
        Tokenizer(vocab_size=vocab_size),
        Validation(tokens=1024),
        128,
        workspace,
    )
    return made.tokenizer


def ours(source: Path, tokenizer: str, folder: Path) -> Callable[[], int]:
    """From JSON lines to whole token files; what counts their tokens."""
    domain = {"text": Domain(files=str(source))}
    made = corpus.prepare(domain, Tokenizer(name=tokenizer), Validation(tokens=1024), 128, folder)
    files = made.domains["text"]
    return lambda: files.train_tokens + files.validation_tokens


def mapped(source: Path, tokenizer: str, folder: Path, processes: int | None) -> Callable[[], int]:
    """From JSON lines to an Arrow file; what counts its tokens."""
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = loaded(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"ids": [[*document, loaded.eos_token_id] for document in ids]}

    rows = datasets.load_dataset("json", data_files=str(source), cache_dir=folder, split="train")
    done = rows.map(tokenise, batched=True, num_proc=processes, remove_columns=rows.column_names)
    arrow = done.with_format("arrow")
    return lambda: sum(len(ids) for batch in arrow.iter(1000) for ids in batch["ids"])


def cpu_seconds() -> float:
    """That this process and its ended children have used."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "text.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps({"text": t}) + "\n" for t in texts(options.megabytes))
        tokenizer = trained_tokenizer(source, options.vocab, folder / "tokenizer")
        vocabulary = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
        candidates: dict[str, Callable[[Path], Callable[[], int]]] = {
            "prepare": lambda f: ours(source, tokenizer, f),
            "datasets.map, 2 processes": lambda f: mapped(source, tokenizer, f, 2),
            "datasets.map, 1 process": lambda f: mapped(source, tokenizer, f, None),
        }
        cores = os.cpu_count()
        lines = [
            f"{options.megabytes:g} MB of JSON lines, BPE of {vocabulary:,}, {cores} cores",
            f"{'':28}{'s':>7}{'MB/s':>7}{'ratio':>7}{'CPU s':>7}",
        ]
        best: dict[str, tuple[float, float]] = {}
        counts = set()
        for i in range(options.repeats):
            for kind, run in candidates.items():
                start, used = time.perf_counter(), cpu_seconds()
                count = run(folder / f"{kind} {i}")
                took = time.perf_counter() - start, cpu_seconds() - used
                best[kind] = min(took, best.get(kind, took))
                counts.add(count())
        assert len(counts) == 1, f"they disagree about the tokens: {counts}"
        for kind, (seconds, cpu) in best.items():
            speed, ratio = options.megabytes / seconds, seconds / best["prepare"][0]
            lines.append(f"{kind:28}{seconds:7.1f}{speed:7.2f}{ratio:7.2f}{cpu:7.1f}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

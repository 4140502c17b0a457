"""Text → token files: one folder per domain, kept until its text or the tokenizer changes.

    <workspace>/tokenizers/<key>/              a saved tokenizer
    <workspace>/tokens/<key>/{train,validation}.{bin,idx}, domain.json    of a domain or set
    <workspace>/tokens/<key>/{answers.bin,rows.npy}, domain.json          of a task
    <workspace>/corpora/<key>.json             the manifest: what a study uses of these

A `.bin` file is a flat array of token ids, with an end-of-text token after each document. An
`.idx` file is the array of the documents' ends in it, counted in tokens. Both are memory-mapped.
`domain.json` and the manifest are written last, so a folder that has one is complete. Until then a
domain's files are in `tokens/<key>.partial/`, from which an interrupted preparation resumes.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from training.config import Domain, Tokenizer, Validation
from training.data import sources, tokenise
from training.data import tokenizer as tokenizers
from training.data.folders import Fingerprints, Folders
from training.data.hashing import FORMAT, key_of
from training.data.sources import SET, TASK
from training.data.tasks import TaskFiles
from training.record.errors import InputError
from training.record.files import write_json

logger = logging.getLogger("training")

DONE = {"drop": "left out of the training text", "warn": "kept in the training text"}  # of leaks


@dataclass(frozen=True)
class TokenFiles:
    """One domain's tokens on disk."""

    folder: str
    dtype: str
    train_tokens: int
    validation_tokens: int
    bytes_per_token: float
    """UTF-8 bytes per held-out token; converts nats per token into bits per byte."""
    documents: int
    digest: str
    """Hash of the tokens of both parts."""
    skipped: int = 0
    """Rows skipped under `on_error: skip`."""
    leaks: dict[str, Any] = field(default_factory=dict)
    """Set → documents and tokens of training text that hold text of it, and an example."""

    def train(self) -> np.ndarray:
        """Token ids, (train_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "train.bin"), dtype=self.dtype, mode="r")

    def validation(self) -> np.ndarray:
        """Token ids, (validation_tokens,), memory-mapped."""
        return np.memmap(Path(self.folder, "validation.bin"), dtype=self.dtype, mode="r")

    def validation_documents(self) -> np.ndarray:
        """End of each held-out document, including its end-of-text token, (documents,)."""
        return np.memmap(Path(self.folder, "validation.idx"), dtype=tokenise.ENDS, mode="r")


@dataclass(frozen=True)
class Corpus:
    """The token files of a study's domains, validation sets and tasks, in the study's order."""

    manifest: Path
    tokenizer: str
    vocab_size: int
    domains: dict[str, TokenFiles]
    sets: dict[str, TokenFiles] = field(default_factory=dict)
    tasks: dict[str, TaskFiles] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, TokenFiles]:
        """The domains and sets, on whose held-out text losses are measured."""
        return {**self.domains, **self.sets}

    @property
    def evaluated(self) -> list[str]:
        """What losses are measured on: the domains, the sets, then the tasks."""
        return [*self.domains, *self.sets, *self.tasks]

    @property
    def digest(self) -> str:
        """Hash of all tokens."""
        parts = [f"{name}:{files.digest}" for name, files in self.domains.items()]
        parts += [f"set {name}:{files.digest}" for name, files in self.sets.items()]
        parts += [f"task {name}:{task.digest}" for name, task in self.tasks.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def proportional_mixture(self) -> dict[str, float]:
        """The mixture in proportion to each domain's training tokens."""
        total = sum(files.train_tokens for files in self.domains.values())
        return {name: files.train_tokens / total for name, files in self.domains.items()}


def load(manifest: Path) -> Corpus:
    """A prepared corpus from its manifest."""
    return _corpus(manifest, json.loads(manifest.read_text()))


def _corpus(manifest: Path, raw: Mapping[str, Any]) -> Corpus:
    domains, sets = (
        {name: TokenFiles(**files) for name, files in raw.get(part, {}).items()}
        for part in ("domains", "sets")
    )
    of_tasks = {name: TaskFiles(**files) for name, files in raw.get("tasks", {}).items()}
    return Corpus(manifest, raw["tokenizer"], raw["vocab_size"], domains, sets, of_tasks)


def prepare(
    domains: Mapping[str, Domain],
    tokenizer: Tokenizer,
    validation: Validation,
    sequence_length: int,
    workspace: Path,
) -> Corpus:
    """Tokenise what is not yet tokenised and return the corpus.

    Only one process at a time prepares in a workspace. Raises InputError for a source that cannot
    be read, an empty domain, and a domain whose held-out or training part is smaller than what the
    study reads from it.
    """
    texts = Fingerprints.of(domains, validation, workspace)
    manifest = _manifest(texts, tokenizer, validation, workspace)
    if not _whole(manifest):
        with _locked(workspace):
            sources.check(domains)  # before tokenising the first
            sources.check(validation.sets, SET)
            sources.check(validation.tasks, TASK)
            folder = tokenizers.prepared(
                domains, texts.domains, tokenizer, validation.fraction, workspace
            )
            tokenised = Folders(workspace / "tokens", folder.name, tokenizers.load(folder))
            tasks = tokenised.tasks(validation.tasks, texts.tasks)
            answers = {name: TaskFiles(**files) for name, files in tasks.items()}
            _check_answers(answers, sequence_length)  # before tokenising the domains
            summary = {
                "tokenizer": str(folder),
                "vocab_size": len(tokenised.tokenizer),
                "tasks": tasks,
                "domains": tokenised.domains(domains, texts, validation),
                "sets": tokenised.texts(validation.sets, texts.sets, 1.0, kind=SET),
            }
            summary = {key: value for key, value in summary.items() if value}
            _check(_corpus(manifest, summary), validation, sequence_length)
            write_json(manifest, summary, indent=1)
    corpus = load(manifest)
    _check(corpus, validation, sequence_length)
    _check_answers(corpus.tasks, sequence_length)
    for line in _leaks(corpus):
        logger.warning(f"{DONE[validation.decontaminate]}: {line}")
    return corpus


def find(
    domains: Mapping[str, Domain], tokenizer: Tokenizer, validation: Validation, workspace: Path
) -> Corpus | None:
    """The corpus if it is prepared and up to date, else None; prepares nothing.

    Raises InputError for files that cannot be read.
    """
    if not (workspace / "corpora").exists():
        return None  # avoids hashing the source files
    texts = Fingerprints.of(domains, validation, workspace)
    manifest = _manifest(texts, tokenizer, validation, workspace)
    return load(manifest) if _whole(manifest) else None


def _manifest(
    texts: Fingerprints, tokenizer: Tokenizer, validation: Validation, workspace: Path
) -> Path:
    parts = [FORMAT, list(texts.domains.items()), tokenizer.model_dump(), validation.fraction]
    if texts.held_out:
        parts += [list(texts.sets.items()), validation.decontaminate]
    if texts.tasks:
        parts.append(list(texts.tasks.items()))
    return workspace / "corpora" / f"{key_of(parts)}.json"


def _whole(manifest: Path) -> bool:
    """Whether a manifest and every file it names exist."""
    if not manifest.exists():
        return False
    corpus = load(manifest)
    folders = [files.folder for files in corpus.texts.values()]
    folders += [task.folder for task in corpus.tasks.values()]
    return all(Path(folder, "domain.json").exists() for folder in folders)


def _check(corpus: Corpus, validation: Validation, sequence_length: int) -> None:
    """Raise InputError for leaks that are to be refused, and for too little text."""
    if validation.decontaminate == "refuse" and (lines := _leaks(corpus)):
        raise InputError(
            f"validation: {'; '.join(lines)}; remove them, or set validation.decontaminate to drop"
        )
    for name, files in corpus.domains.items():
        _check_size(name, files, validation, sequence_length)
    for name, files in corpus.sets.items():
        _check_held_out(f"set {name!r}", files, validation, sequence_length)


def _check_answers(tasks: Mapping[str, TaskFiles], sequence_length: int) -> None:
    """Raise InputError for an answer that is longer than the context."""
    for name, task in tasks.items():
        if task.longest_answer > sequence_length:
            rows = task.rows()
            longest = rows[int(rows["answer"].argmax())]
            count = len(np.unique(rows["question"][rows["answer"] > sequence_length]))
            raise InputError(
                f"task {name!r}: the answer of its question {longest['question'] + 1:,} has "
                f"{longest['answer']:,} tokens, more than training.sequence_length "
                f"({sequence_length}); raise that, or leave such questions out ({count:,} have "
                "such answers)"
            )


def _leaks(corpus: Corpus) -> list[str]:
    """Which training text holds text of a set or task, a line for each domain and each of them."""
    return [
        f"{leak['documents']:,} documents ({leak['tokens']:,} tokens) of {domain!r} hold text of "
        f"the {TASK if name in corpus.tasks else SET} {name!r}, for one: {leak['example']!r}"
        for domain, files in corpus.domains.items()
        for name, leak in files.leaks.items()
    ]


def _check_held_out(
    what: str, files: TokenFiles, validation: Validation, sequence_length: int, more: str = ""
) -> None:
    needed = max(validation.tokens, sequence_length) + 1
    if files.validation_tokens < needed:
        raise InputError(
            f"{what}: its held-out part has {files.validation_tokens:,} tokens, an evaluation "
            f"reads {needed:,}; add text{more} or lower validation.tokens "
            f"({validation.tokens:,})"
        )


def _check_size(name: str, files: TokenFiles, validation: Validation, sequence_length: int) -> None:
    more = f", raise validation.fraction ({validation.fraction:g})"
    _check_held_out(f"domain {name!r}", files, validation, sequence_length, more)
    if files.train_tokens <= sequence_length:
        if files.leaks and validation.decontaminate == "drop":
            raise InputError(
                f"domain {name!r}: its training part has {files.train_tokens:,} tokens, since all "
                f"else holds text of {', '.join(map(repr, files.leaks))}; give the domain "
                "other text, or set validation.decontaminate to warn"
            )
        raise InputError(
            f"domain {name!r}: its training part has {files.train_tokens:,} tokens, less than "
            f"one sequence ({sequence_length}); add text or lower validation.fraction"
        )


@contextmanager
def _locked(workspace: Path) -> Iterator[None]:
    """Exclude other processes that prepare in this workspace."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / "prepare.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning(f"waiting: another process prepares in {workspace}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
